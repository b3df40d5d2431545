"""Codes chosen with error feedback: the kernels of quant/kernels/feedback.h, and what they are given.

The bytes depend on the weights, their stock encoding and the correlations alone, not on the instruction set
or the number of threads. Without the kernels nothing can be chosen.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import EnvironmentProblem
from . import native
from .code_layouts import Grid, Layout, layout_of
from .formats import Format
from .ggml import Bytes, Floats

TILE = 64
"""Rows and columns that are worked on together (feedback.h)."""

_BLOCKS = 8  # of TILE rows that are worked on together (BLOCKS of feedback.h)
_BLOCK = 3 * TILE**2 + 2 * (TILE // 16) * TILE  # numbers of four bytes of a block's own (struct block)

DESCENTS = 2
"""Times each code is chosen again when all others are known. A third one changes hardly anything."""


@dataclass(frozen=True)
class Correlated:
    """Correlations of a matrix's inputs.

    ``matrix`` float32 ``(n, n)``, n the columns rounded up to whole tiles: correlations above the diagonal,
    and below it the same or, once it is ready to choose codes with, their factor. ``roots`` float32 ``(n,)``
    of the mean squares of the inputs; 0 where nothing flows.
    """

    matrix: Floats
    roots: Floats


def set_for(kernels: native.Kernels) -> str:
    """The instruction set to choose codes with. Raises EnvironmentProblem where kernels are not built."""
    name = native.chosen().name if kernels == "chosen" else native.other()
    available = native.available_sets()
    if name == native.LIBGGML:
        name = available[-1] if available else ""
    if not name:
        raise EnvironmentProblem(
            f"--optimize needs kconv's own kernels: {native.chosen().why}",
            hint="install kconv again with a C compiler present, or leave out --optimize",
        )
    return name


def spread(rows: Iterable[Floats], squares: Floats) -> Correlated:
    """Correlations to measure losses with.

    ``rows`` come in order, TILE at a time, ``(rows, last row + 1)``, of which what is below the diagonal
    counts; ``squares`` ``(columns,)`` are mean squares of the inputs.
    """
    columns = len(squares)
    padded = -(-columns // TILE) * TILE
    matrix = np.zeros((padded, padded), np.float32)
    start = 0
    for tile in rows:
        stop = start + len(tile)
        matrix[start:stop, :start] = tile[:, :start]
        matrix[:start, start:stop] = tile[:, :start].T
        corner = np.tril(tile[:, start:], -1)
        matrix[start:stop, start:stop] = corner + corner.T
        start = stop
    np.fill_diagonal(matrix, 1.0)
    roots = np.zeros(padded, np.float32)
    roots[:columns] = np.sqrt(squares, dtype=np.float32)
    return Correlated(matrix, roots)


def shrink(given: Correlated, strength: float) -> None:
    """Shrink correlations towards the diagonal, in place."""
    np.multiply(given.matrix, np.float32(1.0 - strength), out=given.matrix)
    np.fill_diagonal(given.matrix, 1.0)


def factor(given: Correlated) -> bool:
    """Make correlations ready to choose codes with, in place; False where they cannot be factored."""
    padded = len(given.roots)
    work = np.empty(2 * TILE * padded, np.float32)
    number = native.SETS.index(set_for("chosen"))
    return bool(_library().kconv_factor(number, given.matrix.ctypes.data, padded, work.ctypes.data))


def refine(
    format: Format, weights: Floats, data: Bytes, given: Correlated, *, kernels: native.Kernels = "chosen"
) -> None:
    """Choose the codes of ``data`` anew: finite ``weights`` ``(rows, columns)`` encoded in ``format``."""
    layout = layout_of(format)
    if layout is None or not weights.size:
        return
    blocks, rows = _taken_apart(format, layout, weights, data)
    library, number = _library(), native.SETS.index(set_for(kernels))
    z = _room(len(weights), given)
    library.kconv_refine(
        number, given.matrix.ctypes.data, len(given.roots), given.roots.ctypes.data,
        ctypes.byref(rows.struct), DESCENTS, z.ctypes.data,
    )  # fmt: skip
    layout.put(blocks, rows.codes.reshape(len(blocks), -1))


def losses(format: Format, weights: Floats, data: Bytes, given: Correlated) -> npt.NDArray[np.float64]:
    """tr(e H e^T) of each row of encoded weights, with the correlations that ``given`` holds."""
    layout = layout_of(format)
    assert layout is not None
    _, rows = _taken_apart(format, layout, weights, data)
    found = np.empty(len(weights), np.float64)
    z = _room(len(weights), given)
    _library().kconv_measure(
        native.SETS.index(set_for("chosen")), given.matrix.ctypes.data, len(given.roots),
        given.roots.ctypes.data, ctypes.byref(rows.struct), z.ctypes.data, found.ctypes.data,
    )  # fmt: skip
    return found


class _GridStruct(ctypes.Structure):
    """struct kconv_grid of kernels.h."""

    _fields_ = (
        ("low", ctypes.c_int),
        ("high", ctypes.c_int),
        ("offset", ctypes.c_int),
        ("count", ctypes.c_int),
        ("values", ctypes.c_void_p),
    )


class _RowsStruct(ctypes.Structure):
    """struct kconv_rows of kernels.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("minima", ctypes.c_void_p),
        ("codes", ctypes.c_void_p),
        ("grid", ctypes.POINTER(_GridStruct)),
        ("count", ctypes.c_int64),
        ("columns", ctypes.c_int64),
        ("group", ctypes.c_int),
    )


@dataclass(frozen=True)
class _Rows:
    """``struct`` points to the arrays, which are ``held``."""

    struct: _RowsStruct
    codes: Bytes
    held: tuple[Any, ...]


def _taken_apart(format: Format, layout: Layout, weights: Floats, data: Bytes) -> tuple[Bytes, _Rows]:
    """The blocks of ``data``, a view of it, and what they hold."""
    blocks = data.reshape(-1, format.block_bytes)
    codes = np.ascontiguousarray(layout.codes(blocks)).reshape(weights.shape)
    steps, minima = (np.ascontiguousarray(each, np.float32) for each in layout.scales(blocks))
    floats = np.ascontiguousarray(weights, np.float32)
    values = np.array(layout.grid.values, np.float32)
    grid = _grid(layout.grid, values)
    struct = _RowsStruct(
        floats.ctypes.data, steps.ctypes.data, minima.ctypes.data, codes.ctypes.data, ctypes.pointer(grid),
        *weights.shape, layout.grid.group,
    )  # fmt: skip
    return blocks, _Rows(struct, codes, (floats, steps, minima, values, grid))


def _room(rows: int, given: Correlated) -> Floats:
    """What the kernels work in."""
    blocks = min(-(-rows // TILE), _BLOCKS)
    return np.empty(blocks * (TILE * len(given.roots) + _BLOCK), np.float32)


def _grid(grid: Grid, values: Floats) -> _GridStruct:
    return _GridStruct(grid.low, grid.high, grid.offset, len(values), values.ctypes.data)


def _library() -> ctypes.CDLL:
    set_for("chosen")
    library = native.built()
    assert library is not None
    return library
