"""Weights encoded a second time, for a file to be compared with: soon, and not by what made the file alone.

The kernels of another instruction set than this machine would choose encode everything. All sets come from
one source, so libggml, which is slow, encodes too: every row in which the file differs, so that no file is
called wrong by a kernel's word, and a sample of each format's rows, in which a kernel that is wrong once in
100,000 blocks is met with a probability of 99.9 %. Which rows, the file's own bytes say (their SHA-256).
Where there is no second set, or no kernel for a format, libggml encodes everything.

In formats on grids libggml encodes 1 to 6 million weights a second and core, so its sample takes 25 to 155 s
of one, however large the file is; without a second set of wide vectors there is no more than that sample. Of
files made elsewhere in these formats bytes count only where all, or nearly all, are those of encoding anew:
importance data, which most such files are made with, change them throughout.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.tensor import Array, Tensor
from . import ggml, native
from .encoders import encoder_of
from .formats import ENCODABLE, F32, NEEDS_IMPORTANCE, RECODABLE, Format
from .ggml import Bytes, Floats
from .importance import Importance
from .native import Kernels
from .optimize import Choosers
from .slabs import Scratch

SAMPLE = 690_000
"""Blocks of each format that libggml encodes, or all: ln(1 / 0.001) * 100,000."""

_PROBED = 8  # rows of a piece, before all of it is encoded on a grid for bytes that may be others throughout
# Of a file made elsewhere, differing rows are left to the kernels where more than one in so many differ: then
# its bytes are others throughout, as importance data make them, and only errors are compared.
_FEW = 8
# Bytes of a piece that say which of its rows are drawn.
_HASHED = 1 << 16


@dataclass(frozen=True)
class Rows:
    """Some rows of a piece: their ``weights`` (rows, columns), their bytes in the file, and encoded anew.

    ``first`` counts from the piece's beginning. ``encoded`` is None where nothing encoded them. All are views
    of the thread's scratch memory, or of what was given.
    """

    first: int
    weights: Floats
    stored: Bytes
    encoded: Bytes | None


class SecondLook:
    """Encodes the tensors of one file; ``sizes`` are the format and the number of weights of each.

    ``exact``: its bytes should be those of encoding anew with ``importance``, so that each one counts.
    """

    def __init__(
        self, sizes: Iterable[tuple[Format, int]], importance: Importance | None, *, exact: bool
    ) -> None:
        self._importance, self._exact = importance, exact
        blocks: dict[Format, int] = {}
        for format, weights in sizes:
            blocks[format] = blocks.get(format, 0) + weights // format.block_size
        self._shares = {format: min(1.0, SAMPLE / max(1, count)) for format, count in blocks.items()}

    def encode(
        self, tensor: Tensor, format: Format, source: Array, stored: Bytes, scratch: Scratch, first: int
    ) -> Iterator[Rows]:
        """The rows of a piece in order, from ``source``, the rows of the tensor from ``first`` on.

        ``stored`` are their bytes in the file. Raises UsageError for columns that are not whole blocks.
        """
        share, recodable = self._shares[format], format in RECODABLE
        weighed = encoder_of(tensor, (F32,), self._importance, kernels="none")
        importance = weighed.importance_of(source, first)
        set = native.other()
        kernel = share < 1 and set != native.LIBGGML
        kernel = kernel and native.has_kernel(set, format, weighed=importance is not None)
        encoder = encoder_of(
            tensor,
            (F32, format) if recodable else (F32,),
            self._importance,
            kernels="other" if kernel else "none",
        )
        slab = encoder.encode(source, tensor.dtype, scratch, first)
        weights = slab.data[0].view(np.float32).reshape(-1, source.shape[-1])
        size = format.row_bytes(weights.shape[1])
        matrix = first if source.ndim == 3 else 0
        piece = _Piece(format, weights, importance, weighed.choosers, matrix)
        wide = set in native.SETS[1:] and native.has_kernel(set, format, weighed=importance is not None)
        if not recodable and wide:
            yield self._on_grid(piece, stored, slab.largest, share)
            return
        if not recodable:
            encodes = self._exact and piece.encodes(slab.largest)
            some = _run(len(weights), share, stored) if encodes else range(0)
            yield from _apart(piece, stored, some)
            return
        if kernel:
            self._second(piece, slab.data[1].reshape(-1, size), stored, share)
        yield Rows(0, weights, stored, slab.data[1])

    def _second(self, piece: _Piece, ours: Bytes, stored: Bytes, share: float) -> bool:
        """Have libggml encode its share of the rows, and those that differ, in place of the kernels.

        Not the latter where bytes of a file made elsewhere are others throughout: then False.
        """
        differ = (ours != stored.reshape(ours.shape)).any(axis=1)
        chosen = _chance(stored).permutation(len(ours)) < share * len(ours)
        counts = self._exact or np.count_nonzero(differ) * _FEW <= len(ours)
        if counts:
            chosen |= differ
        piece.replace(ours, np.flatnonzero(chosen))
        return bool(counts)

    def _on_grid(self, piece: _Piece, stored: Bytes, largest: float, share: float) -> Rows:
        """All rows encoded by the kernels of another set, and as ``_second`` has it."""
        weights = piece.weights
        nothing = Rows(0, weights, stored, None)
        if not piece.encodes(largest):
            return nothing
        ours = np.empty((len(weights), piece.format.row_bytes(weights.shape[1])), np.uint8)
        if not self._exact:
            some = np.unique(np.linspace(0, len(weights) - 1, _PROBED).astype(int))
            piece.replace(ours, some, "other")
            if (ours[some] != stored.reshape(ours.shape)[some]).any(axis=1).all():
                return nothing
        piece.replace(ours, np.arange(len(weights)), "other")
        return (
            Rows(0, weights, stored, ours.reshape(-1))
            if self._second(piece, ours, stored, share)
            else nothing
        )


@dataclass(frozen=True)
class _Piece:
    """``weights`` (rows, columns), and the importance (matrices * columns,) of the matrices they are of.

    ``choosers`` choose codes where a file was optimized; the first matrix is number ``first`` of its stack.
    """

    format: Format
    weights: Floats
    importance: Floats | None
    choosers: Choosers | None = None
    first: int = 0

    def encodes(self, largest: float) -> bool:
        """Whether libggml can encode such weights as the file should hold them."""
        known = self.importance is not None or self.format not in NEEDS_IMPORTANCE
        return self.format in ENCODABLE and known and ggml.can_encode(self.format, largest, self.importance)

    def replace(self, encoded: Array, rows: npt.NDArray[Any], kernels: Kernels = "none") -> None:
        """Write what libggml or kernels make of ``rows`` (numbers) to ``encoded`` (all, bytes of a row)."""
        columns = self.weights.shape[1]
        matrices = 1 if self.importance is None else self.importance.size // columns
        each = max(1, len(self.weights) // matrices)
        for matrix in range(matrices):
            here = rows[rows // each == matrix]
            importance = None
            if self.importance is not None:
                importance = self.importance[matrix * columns : (matrix + 1) * columns]
            out = np.empty(len(here) * encoded.shape[1], np.uint8)
            weights = self.weights[here]
            ggml.encode(self.format, weights, out, importance, kernels=kernels)
            if self.choosers is not None:
                self.choosers.choose(self.format, weights, out, self.first + matrix, kernels)
            encoded[here] = out.reshape(len(here), -1)


def _apart(piece: _Piece, stored: Bytes, some: range) -> Iterator[Rows]:
    """All rows, of which libggml encodes ``some``."""
    weights, size = piece.weights, piece.format.row_bytes(piece.weights.shape[1])
    for start, stop in ((0, some.start), (some.start, some.stop), (some.stop, len(weights))):
        if start == stop:
            continue
        encoded = None
        if range(start, stop) == some:
            room = np.empty((len(weights), size), np.uint8)
            piece.replace(room, np.arange(start, stop))
            encoded = room[start:stop].reshape(-1)
        yield Rows(start, weights[start:stop], stored[start * size : stop * size], encoded)


def _run(rows: int, share: float, stored: Bytes) -> range:
    """Neighbouring rows, on average ``share`` of them."""
    chance = _chance(stored)
    count = min(rows, int(share * rows + chance.random()))
    start = int(chance.integers(rows - count + 1))
    return range(start, start + count)


def _chance(stored: Bytes) -> np.random.Generator:
    return np.random.default_rng(
        int.from_bytes(hashlib.sha256(stored[:_HASHED].tobytes()).digest(), "little")
    )
