"""Looking on while the fp32 reference computes: what flows into its modules, and what leaves its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.windows import Window
from .encoder_decoder import reads_source
from .expert_layout import bias_of, gated, halves, upright
from .stand_ins import rests

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Observe = Callable[[str, int, Floats], None]
"""Called with the name of a module, the number of a window and what flows in, ``(positions, columns)``."""


@dataclass(frozen=True)
class Watch:
    """Windows to read for what flows into the modules of those ``names``.

    ``observe`` counts windows from the first of ``windows``; its array is valid during the call only.
    ``finished`` gets the name of each observed module as soon as all windows have gone through it.
    """

    windows: tuple[Window, ...]
    names: frozenset[str]
    observe: Observe
    finished: Callable[[str], None] = lambda name: None


class Watching:
    """A watch at work; its windows are those from number ``first`` on of all that are read."""

    def __init__(self, watch: Watch, first: int) -> None:
        self._watch = watch
        self._first = first
        self._told: dict[str, None] = {}

    def along(
        self, model: torch.nn.Module, batch: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> contextlib.AbstractContextManager[None]:
        """Watch while windows of those numbers are computed together; ``sizes`` as of ``observed_inputs``."""

        def observe(name: str, row: int, values: Floats) -> None:
            if batch[row] >= self._first:
                self._told[name] = None
                self._watch.observe(name, batch[row] - self._first, values)

        return observed_inputs(model, self._watch.names, sizes, observe)

    def finish(self, within: str = "") -> None:
        """All windows have gone through the modules whose names begin so."""
        for name in [name for name in self._told if name.startswith(within)]:
            del self._told[name]
            self._watch.finished(name)


@contextlib.contextmanager
def observed_inputs(
    model: torch.nn.Module, names: Collection[str], sizes: Sequence[tuple[int, int]], observe: Observe
) -> Iterator[None]:
    """Tell what flows into the linear modules of those ``names``, row by row of a batch, without the padding.

    The matrices of experts go by names, too: ``….experts.3.down_proj``.
    ``sizes`` are each row's positions in the encoder and in the decoder.
    """
    import torch

    def hook(name: str, module: torch.nn.Module, args: Any) -> None:
        if rests(module):
            return
        values = args[0]
        if values.ndim == 2:  # OPT's feed-forward layers see the positions of all rows as one axis
            values = values.reshape(len(sizes), -1, values.shape[-1])
        for row, (source, target) in enumerate(sizes):
            observe(name, row, values[row, : source if reads_source(name) else target].numpy())

    def experts_hook(place: str, module: torch.nn.Module, args: Any) -> None:
        for row, name, values in into_experts(place, module, args, [target for _, target in sizes]):
            if name in names:
                observe(name, row, values)

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name in names and isinstance(module, torch.nn.Linear):  # others look rows up
                stack.callback(module.register_forward_pre_hook(partial(hook, name)).remove)
            elif is_experts(module) and f"{name}.0.gate_proj" in names:
                stack.callback(module.register_forward_pre_hook(partial(experts_hook, name)).remove)
        yield


def is_experts(module: torch.nn.Module) -> bool:
    """Whether it holds the feed-forward matrices of many experts, as transformers 5 fuses them."""
    fused = (getattr(module, name, None) for name in ("gate_up_proj", "down_proj"))
    return all(getattr(weight, "ndim", 0) == 3 for weight in fused)


def into_experts(
    place: str, module: Any, args: Any, lengths: Sequence[int]
) -> Iterator[tuple[int, str, Floats]]:
    """What flows into each matrix of each expert: row of the batch, the matrix's name, ``(tokens, columns)``.

    ``args`` are the module's: all positions of the batch ``(batch * length, hidden)``, the experts chosen for
    each, their weights. An expert sees the positions it was chosen for, without the padding. The matrices are
    in memory, since the hook that reads them ran before.
    """
    import torch

    hidden, chosen = args[0], args[1]
    each = len(hidden) // len(lengths)
    for expert in range(module.gate_up_proj.shape[0]):
        routed = (chosen == expert).any(dim=-1)
        matrix = upright(module, module.gate_up_proj[expert])
        bias = bias_of(module, "gate_up_proj", expert)
        for row, length in enumerate(lengths):
            at = routed[row * each : row * each + length].nonzero()[:, 0] + row * each
            if not len(at):
                continue
            entering = hidden[at]
            fused = torch.nn.functional.linear(entering, matrix, bias)
            gate, up = (part.T for part in halves(module, fused.T))
            for name in ("gate_proj", "up_proj"):
                yield row, f"{place}.{expert}.{name}", entering.numpy()
            yield row, f"{place}.{expert}.down_proj", gated(module, gate, up).numpy()


@contextlib.contextmanager
def captured_outputs(modules: Sequence[torch.nn.Module], row: int, kept: list[Floats]) -> Iterator[None]:
    """Append to ``kept`` what leaves each of the modules for that row of the batch, padding included."""

    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        if rests(module):
            return
        values = output[0] if isinstance(output, tuple) else output
        kept.append(values[row].numpy().copy())

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield
