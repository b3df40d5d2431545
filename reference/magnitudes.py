"""How large numbers get in the fp32 reference: the largest magnitude into and out of every matrix, and into
every norm, before which lies the sum of all that layers have added.

Half precision ends at 65,504, and models as they were trained pass it. Whether they do can be seen only here:
onnxruntime on x86 computes FLOAT16 in float32, and there nothing overflows.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .encoder_decoder import reads_source
from .expert_products import observed_products
from .stand_ins import rests
from .watching import is_experts

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

HEAD = ""
"""The name of the output matrix among the modules, whatever transformers calls it."""

_ROWS = 3
"""Axes at most of hidden states: windows, positions, columns."""

Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Peak:
    """The largest magnitude at one place, infinite where anything is NaN, and where in the text it occurs."""

    value: float = 0.0
    window: int = 0
    position: int = 0

    def moved(self, windows: Sequence[int]) -> Peak:
        """The same with another number for its window, ``windows[window]``."""
        return Peak(self.value, windows[self.window], self.position)


def highest(peaks: Sequence[Peak]) -> Peak:
    """The first of the largest."""
    return max(peaks, key=lambda peak: peak.value, default=Peak())


@dataclass(frozen=True)
class Flow:
    """The peaks of what is multiplied by a matrix, and of the products."""

    into: Peak = Peak()
    out: Peak = Peak()


def joined(flows: Sequence[Flow]) -> Flow:
    """Of several the highest each way."""
    return Flow(highest([flow.into for flow in flows]), highest([flow.out for flow in flows]))


class Magnitudes:
    """Gathers peaks by the names of transformers' modules; experts' are ``….experts.3.down_proj``.

    Counted are the first ``windows`` of those that are read.
    """

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._peaks: dict[tuple[str, bool], Peak] = {}
        # query, key and value matrices read one tensor: it is looked through once
        self._last: tuple[weakref.ref[torch.Tensor], list[float]] | None = None

    @property
    def flows(self) -> Mapping[str, Flow]:
        """What has been gathered."""
        names = dict.fromkeys(name for name, _ in self._peaks)
        nothing = Peak()
        return {
            name: Flow(self._peaks.get((name, False), nothing), self._peaks.get((name, True), nothing))
            for name in names
        }

    def to_json(self) -> list[list[Any]]:
        """What has been gathered, as plain values: name, direction, magnitude, window, position."""
        return [[*key, peak.value, peak.window, peak.position] for key, peak in self._peaks.items()]

    @classmethod
    def from_json(cls, windows: int, values: Sequence[Sequence[Any]]) -> Magnitudes:
        """The same again. Raises ValueError and TypeError where it is anything else."""
        made = cls(windows)
        for name, out, value, window, position in values:
            made._peaks[str(name), bool(out)] = Peak(float(value), int(window), int(position))
        return made

    @contextlib.contextmanager
    def along(self, model: torch.nn.Module, batch: Sequence[int], sizes: Sizes) -> Iterator[None]:
        """Look on while windows of those numbers are computed together.

        ``sizes`` are each window's positions in the encoder and in the decoder.
        """
        if not any(number < self._windows for number in batch):
            yield
            return
        with contextlib.ExitStack() as stack:
            for name, module in model.named_modules():
                if is_experts(module):
                    lengths = [target for _, target in sizes]
                    note = partial(self._note_experts, name, batch)
                    stack.enter_context(observed_products(module, lengths, note))
                elif _is_matrix(module) or _is_norm(module):
                    lengths = [source if reads_source(name) else target for source, target in sizes]
                    hook = partial(self._hook, name, batch, lengths)
                    stack.callback(module.register_forward_hook(hook).remove)
            yield
        self._last = None

    def note_head(self, values: Floats, window: int, start: int, *, out: bool) -> None:
        """Take in what flows into or out of the output matrix from position ``start`` of a window on."""
        value = _peak(values)
        if value > self._value(HEAD, out):
            self._peaks[HEAD, out] = Peak(value, window, start + _highest_position(values))

    def _hook(
        self,
        name: str,
        batch: Sequence[int],
        lengths: Sequence[int],
        module: torch.nn.Module,
        args: Any,
        output: Any,
    ) -> None:
        if rests(module):
            return
        if not _is_matrix(module):
            if args and args[0].ndim <= _ROWS:  # not the norm of every head by itself
                self._note(name, False, batch, lengths, args[0])
            return
        made = output[0] if isinstance(output, tuple) else output  # of a router the logits
        self._note(name, False, batch, lengths, args[0])
        self._note(name, True, batch, lengths, made)

    def _note(
        self, name: str, out: bool, batch: Sequence[int], lengths: Sequence[int], values: torch.Tensor
    ) -> None:
        """Take in what flowed, ``(windows, positions, columns)`` or the same without the first axis."""
        rows = values.reshape(len(batch), -1, values.shape[-1]).numpy()
        if out or self._last is None or self._last[0]() is not values:
            peaks = [_peak(row[:length]) for row, length in zip(rows, lengths, strict=True)]
            if not out:
                self._last = weakref.ref(values), peaks
        else:
            peaks = self._last[1]
        for number, row, length, value in zip(batch, rows, lengths, peaks, strict=True):
            if number < self._windows and value > self._value(name, out):
                self._peaks[name, out] = Peak(value, number, _highest_position(row[:length]))

    def _note_experts(
        self, place: str, batch: Sequence[int], matrix: str, out: bool, row: int, position: int, value: float
    ) -> None:
        name, value = f"{place}.{matrix}", value if math.isfinite(value) else math.inf
        if batch[row] < self._windows and value > self._value(name, out):
            self._peaks[name, out] = Peak(value, batch[row], position)

    def _value(self, name: str, out: bool) -> float:
        """The largest so far; below zero, so that a matrix that sees only zeros is there, too."""
        peak = self._peaks.get((name, out))
        return -1.0 if peak is None else peak.value


def _is_matrix(module: torch.nn.Module) -> bool:
    """Whether something is multiplied by it; embeddings are looked up."""
    import torch

    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and not isinstance(module, torch.nn.Embedding)


def _is_norm(module: torch.nn.Module) -> bool:
    """Whether rows are divided by their own size, as transformers' classes are named."""
    return type(module).__name__.endswith("Norm")


def _peak(values: Floats) -> float:
    """The largest magnitude, infinite where anything is NaN; 0 of nothing.

    In one thread: many short calls in several would wait for each other longer than they compute.
    """
    if not values.size:
        return 0.0
    most = max(float(values.max()), -float(values.min()))
    return most if math.isfinite(most) else math.inf


def _highest_position(values: Floats) -> int:
    """The row of ``(positions, columns)`` in which the largest magnitude is, or the first NaN."""
    largest = np.maximum(values.max(axis=-1), -values.min(axis=-1))
    return int(np.where(np.isfinite(largest), largest, np.inf).argmax())
