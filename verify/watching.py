"""Looking on while the fp32 reference computes: what flows into its modules, and what leaves its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .encoder_decoder import reads_source
from .windows import Window

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Tell = Callable[[str, int, Floats], None]
"""Is told the name of a module, the number of a window and what flows in, ``(positions, columns)``."""


@dataclass(frozen=True)
class Watch:
    """Windows to read for what flows into the modules of those ``names``; ``tell`` counts from the first one.

    The array ``tell`` is given holds during the call only.
    """

    windows: tuple[Window, ...]
    names: frozenset[str]
    tell: Tell


@contextlib.contextmanager
def inputs_told(
    model: torch.nn.Module, names: Collection[str], sizes: Sequence[tuple[int, int]], tell: Tell
) -> Iterator[None]:
    """Tell what flows into the linear modules of those ``names``, row by row of a batch, without the padding.

    ``sizes`` are each row's positions in the encoder and in the decoder.
    """
    import torch

    def hook(name: str, module: torch.nn.Module, args: Any) -> None:
        for row, (source, target) in enumerate(sizes):
            tell(name, row, args[0][row, : source if reads_source(name) else target].numpy())

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name in names and isinstance(module, torch.nn.Linear):  # others look rows up
                stack.callback(module.register_forward_pre_hook(partial(hook, name)).remove)
        yield


@contextlib.contextmanager
def outputs_kept(modules: Sequence[torch.nn.Module], row: int, kept: list[Floats]) -> Iterator[None]:
    """Append to ``kept`` what leaves each of the modules for that row of the batch, padding included."""

    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        values = output[0] if isinstance(output, tuple) else output
        kept.append(values[row].numpy().copy())

    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        yield
