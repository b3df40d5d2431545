"""What a Reference has read, and the output matrix, which is never in memory whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..core.tensor import Tensor
from .empty_model import Head, computing
from .magnitudes import Magnitudes
from .products import linear
from .weight_reader import RowRange, WeightReader

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_SLICE = 128 << 20  # bytes of the output matrix in float32
_LOGITS = 64 << 20  # bytes of logits computed ahead of those asked for
_LEAST_ROWS = 64  # MKL multiplies fewer than about 30 rows by other code, which rounds differently


class OutputMatrix:
    """The matrix that makes the logits, read in slices; ``behind`` is what the model's class does to them."""

    def __init__(
        self,
        head: Head,
        reader: WeightReader,
        threads: int,
        behind: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._head, self._reader, self._threads, self._behind = head, reader, threads, behind

    @property
    def rows(self) -> int:
        """The vocabulary."""
        return self._head.matrix.rows

    def multiply(
        self, entering: torch.Tensor, missing: torch.Tensor | None = None, minimums: Tensor | None = None
    ) -> Floats:
        """Logits ``(…, vocabulary)`` of ``entering`` ``(…, hidden)``.

        ``missing`` is multiplied by ``minimums``, which have the matrix's shape, and added (recompute.py).
        """
        import torch

        matrix, bias = self._head.matrix, self._head.bias
        values = np.empty((*entering.shape[:-1], matrix.rows), np.float32)
        step = max(1, _SLICE // (4 * matrix.row_elements))
        few = missing is None and bias is None and self._reader.multiplies(entering)
        with computing(self._threads):
            if few:
                values = self._reader.product(entering, matrix).numpy()
            for row in range(0, 0 if few else matrix.rows, step):
                end = min(row + step, matrix.rows)
                parts = [RowRange(part, row, end) for part in (matrix, bias) if part is not None]
                with self._reader.reading(parts) as weights:
                    made = linear(entering, *weights)
                if missing is not None and minimums is not None:
                    with self._reader.reading([RowRange(minimums, row, end)]) as least:
                        made += linear(missing, *least)
                values[..., row:end] = made.numpy()
            if self._behind is not None:
                values = self._behind(torch.from_numpy(values)).numpy()
        return values


@dataclass(frozen=True)
class _Logits:
    """Logits of some positions of a window, from ``start`` on."""

    window: int
    start: int
    values: Floats

    def has(self, window: int, start: int, stop: int) -> bool:
        """Whether those positions are among them."""
        return window == self.window and self.start <= start and stop <= self.start + len(self.values)


class Reading:
    """What a Reference read.

    ``hidden`` is what enters the output matrix, ``(len(ids), hidden)`` per window, without one the last
    hidden states; ``layers`` what leaves each layer (the residual stream), as much for the window asked for,
    else empty. ``magnitudes`` are how large what flows gets; out of the output matrix, as far as logits have
    been asked for.
    """

    def __init__(
        self,
        hidden: list[Floats],
        layers: list[Floats],
        output: OutputMatrix | None,
        magnitudes: Magnitudes,
    ) -> None:
        self.hidden = hidden
        self.layers = layers
        self._output = output
        self.magnitudes = magnitudes
        for window, values in enumerate(hidden if output is not None else ()):
            magnitudes.note_head(values, window, 0, out=False)
        self._keeps = False
        self._made: list[_Logits] = []

    def keep(self, room: int) -> None:
        """Keep all logits once they are computed, for several files that are compared with them one after the
        other, where they fit into ``room`` bytes.
        """
        output = self._output
        self._keeps = output is not None and 4 * output.rows * sum(map(len, self.hidden)) <= room

    def logits(self, window: int, start: int, stop: int) -> Floats:
        """Logits of positions ``start`` to ``stop`` of a window, ``(stop - start, vocabulary)``.

        The whole output matrix is read for some hundred positions at a time, so ask in order, in one thread.
        """
        if not 0 <= start < stop <= len(self.hidden[window]):
            raise ValueError(f"positions {start} to {stop} of {len(self.hidden[window])}")
        ahead = next((made for made in self._made if made.has(window, start, stop)), None)
        if ahead is None:
            if not self._keeps:
                self._made.clear()  # so that its memory can be used again
            ahead = self._compute(window, start, stop)
            self._made.append(ahead)
        return ahead.values[start - ahead.start : stop - ahead.start].copy()

    def _compute(self, window: int, start: int, stop: int) -> _Logits:
        import torch

        assert self._output is not None, "an encoder has no logits"
        count = len(self.hidden[window])
        last = min(max(stop, start + _LOGITS // (4 * self._output.rows)), count)
        last = count if count - last < _LEAST_ROWS else last
        first = max(0, min(start, last - _LEAST_ROWS))
        entering = torch.from_numpy(self.hidden[window][first:last])
        made = _Logits(window, first, self._output.multiply(entering))
        self.magnitudes.note_head(made.values, window, first, out=True)
        return made
