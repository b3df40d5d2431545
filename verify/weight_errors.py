"""How far a file's weights are from the checkpoint's: sums over pieces of a tensor, row by row.

Sums are taken over each row in float32 and over rows in float64, always in the same order; so they do not
depend on how many threads measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..quant.formats import Format
from ..quant.ggml import Bytes, Floats, dequantize
from .weight_limits import SAME_WAY, row_limit, typical_error

Rows = npt.NDArray[np.float64]

# Weights measured at once: few enough for a cache, enough for the calls to cost little.
_TILE = 1 << 18
# Rows kept as examples of those that differ, in a piece and in all.
_EXAMPLES = 8
_EXAMPLES_IN_ALL = 64
# Rows of a norm below this part of the others' are measured against it: what they hold hardly matters.
_SMALL_ROW = 1e-3


@dataclass(frozen=True)
class Sums:
    """Sums over weights: Σw² of the checkpoint's, Σŵ² of the file's, Σŵw and Σ(ŵ−w)²."""

    weights: float = 0.0
    stored: float = 0.0
    cross: float = 0.0
    difference: float = 0.0

    @property
    def error(self) -> float:
        """‖ŵ − w‖ / ‖w‖; ‖ŵ‖ itself where all weights are zero."""
        return math.sqrt(self.difference / self.weights if self.weights else self.difference)

    @property
    def slope(self) -> float:
        """The least-squares factor of ŵ on w; 1 where all weights are zero."""
        return self.cross / self.weights if self.weights else 1.0


@dataclass(frozen=True)
class MarkedRows:
    """Rows of a kind: how many, the first, the last, and the first few of each piece."""

    count: int = 0
    first: int = -1
    last: int = -1
    examples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Compared:
    """A piece, or all of a tensor, of the file against the checkpoint.

    ``same``: the bytes are those of encoding anew. ``stored`` are the file's sums, ``own`` those of encoding
    anew (None for formats that are not encoded anew), ``against_own`` those of the file against it.
    ``worst_row`` has the largest error. ``changed`` are rows of other weights than encoding anew gives
    (``different`` such weights, the ``first`` at that row and column), ``worse`` those of them whose error is
    larger than that of encoding anew, ``far`` rows beyond the format's limit, ``zero`` those of zeros where
    the checkpoint has others. ``not_finite`` counts weights that are NaN or infinite only in the file.
    """

    same: bool
    weights: int
    stored: Sums = Sums()
    own: Sums | None = None
    against_own: Sums | None = None
    worst_row: int = 0
    worst_row_error: float = 0.0
    changed: MarkedRows = MarkedRows()
    worse: MarkedRows = MarkedRows()
    far: MarkedRows = MarkedRows()
    zero: MarkedRows = MarkedRows()
    not_finite: int = 0
    different: int = 0
    first: tuple[int, int] | None = None


def measure(
    weights: Floats, data: Bytes, encoded: Bytes | None, format: Format, first_row: int = 0
) -> Compared:
    """Compare ``data``, rows of a file in ``format``, with the checkpoint's ``weights`` (rows, columns).

    ``encoded`` are the weights encoded anew, ``first_row`` is the number of the first row.
    """
    columns = weights.shape[1]
    size = format.row_bytes(columns)
    step = max(1, _TILE // max(1, columns))
    tiles = []
    for start in range(0, len(weights), step):
        part = slice(start, min(start + step, len(weights)))
        cut = slice(part.start * size, part.stop * size)
        own = None if encoded is None else encoded[cut]
        tiles.append(_measure_tile(weights[part], data[cut], own, format, first_row + start))
    return total(tiles)


def _measure_tile(
    weights: Floats, data: Bytes, encoded: Bytes | None, format: Format, first_row: int
) -> Compared:
    same = encoded is not None and np.array_equal(data, encoded)
    stored = dequantize(format, data, weights.shape)
    rows, not_finite = _finite_sums(weights, stored)
    errors = _row_errors(rows)
    sums = _summed(rows)
    worst = int(np.argmax(errors)) if len(errors) else 0
    common: dict[str, Any] = {
        "same": same,
        "weights": weights.size,
        "stored": sums,
        "worst_row": first_row + worst,
        "worst_row_error": float(errors[worst]) if len(errors) else 0.0,
        "not_finite": not_finite,
        "zero": rows_where((rows[1] == 0) & (rows[0] > 0), first_row),
    }
    if same:
        return Compared(own=sums, **common)
    if encoded is None:
        far = errors > row_limit(format, np.full(len(errors), typical_error(format)))
        return Compared(far=rows_where(far, first_row), **common)
    own = dequantize(format, encoded, weights.shape)
    own_rows = _row_sums(*_finite(weights, own))
    own_errors = _row_errors(own_rows)
    unlike = (stored != own) & ~(np.isnan(stored) & np.isnan(own))
    places = np.argwhere(unlike[unlike.any(axis=1)][:1])
    changed = rows_where(unlike.any(axis=1), first_row)
    worse = unlike.any(axis=1) & (errors > SAME_WAY * own_errors)
    return Compared(
        own=_summed(own_rows),
        against_own=_summed(_row_sums(*_finite(own, stored))),
        changed=changed,
        worse=rows_where(worse, first_row),
        far=rows_where(errors > row_limit(format, own_errors), first_row),
        different=int(np.count_nonzero(unlike)),
        first=(changed.first, int(places[0][1])) if changed.count else None,
        **common,
    )


def total(parts: Iterable[Compared]) -> Compared:
    """Several pieces of one tensor, in order, as one."""
    pieces = list(parts)
    worst = max(pieces, key=lambda piece: piece.worst_row_error, default=Compared(True, 0))
    own = [piece.own for piece in pieces]
    # A piece of the same bytes is against its own encoding what that is against itself.
    against = [piece.against_own or _itself(piece.stored) for piece in pieces]
    firsts = [piece.first for piece in pieces if piece.first is not None]
    return Compared(
        same=all(piece.same for piece in pieces),
        weights=sum(piece.weights for piece in pieces),
        stored=_added([piece.stored for piece in pieces]),
        own=_added([sums for sums in own if sums is not None]) if None not in own else None,
        against_own=_added(against),
        worst_row=worst.worst_row,
        worst_row_error=worst.worst_row_error,
        changed=join_rows([piece.changed for piece in pieces]),
        worse=join_rows([piece.worse for piece in pieces]),
        far=join_rows([piece.far for piece in pieces]),
        zero=join_rows([piece.zero for piece in pieces]),
        not_finite=sum(piece.not_finite for piece in pieces),
        different=sum(piece.different for piece in pieces),
        first=firsts[0] if firsts else None,
    )


def is_scaled(compared: Compared) -> bool:
    """Whether the file's weights are those of encoding anew times a factor."""
    own, against = compared.own, compared.against_own
    if own is None or against is None or not against.weights or not against.stored:
        return False
    residue = max(0.0, 1 - against.cross**2 / (against.weights * against.stored)) ** 0.5
    return residue < own.error / 4 and abs(against.slope - 1) > 0.002


def _row_sums(weights: Floats | Rows, w_hat: Floats | Rows) -> tuple[Rows, Rows, Rows, Rows]:
    """Σw², Σŵ², Σŵw and Σ(ŵ−w)² of each row."""
    with np.errstate(all="ignore"):
        difference = w_hat - weights

        def dots(one: Any, other: Any) -> Rows:
            return np.asarray(np.einsum("ij,ij->i", one, other), np.float64)

        return dots(weights, weights), dots(w_hat, w_hat), dots(w_hat, weights), dots(difference, difference)


def _finite_sums(weights: Floats, w_hat: Floats) -> tuple[tuple[Rows, Rows, Rows, Rows], int]:
    """The sums without what is not finite, and how many weights are so only in the file."""
    rows = _row_sums(weights, w_hat)
    if all(np.isfinite(row).all() for row in rows):
        return rows, 0
    not_finite = int(np.count_nonzero(~np.isfinite(w_hat) & np.isfinite(weights)))
    return _row_sums(*_finite(weights, w_hat)), not_finite


def _finite(weights: Floats, w_hat: Floats) -> tuple[Floats | Rows, Floats | Rows]:
    """Both with zeros wherever one is not finite; in float64 where squares may be beyond float32."""
    finite = np.isfinite(weights) & np.isfinite(w_hat)
    if finite.all() and max(_largest(weights), _largest(w_hat)) < 1e15:
        return weights, w_hat
    return np.where(finite, weights, 0.0).astype(np.float64), np.where(finite, w_hat, 0.0).astype(np.float64)


def _largest(values: Floats) -> float:
    return float(np.abs(values).max(initial=0.0))


def _row_errors(rows: tuple[Rows, Rows, Rows, Rows]) -> Rows:
    """Relative error of each row; of rows of next to nothing, relative to the others."""
    weights, _, _, difference = rows
    floor = _SMALL_ROW**2 * (float(weights.mean()) if len(weights) else 0.0)
    return np.sqrt(difference / np.maximum(weights, floor or 1.0))


def _summed(rows: tuple[Rows, Rows, Rows, Rows]) -> Sums:
    return Sums(*(float(row.sum()) for row in rows))


def _added(parts: list[Sums]) -> Sums:
    return Sums(
        math.fsum(part.weights for part in parts),
        math.fsum(part.stored for part in parts),
        math.fsum(part.cross for part in parts),
        math.fsum(part.difference for part in parts),
    )


def _itself(sums: Sums) -> Sums:
    return Sums(sums.stored, sums.stored, sums.stored, 0.0)


def rows_where(chosen: npt.NDArray[np.bool_], first_row: int) -> MarkedRows:
    """The rows of a piece that are chosen, numbered from ``first_row`` on."""
    places = np.flatnonzero(chosen)
    if not len(places):
        return MarkedRows()
    numbers = [first_row + int(place) for place in places[:_EXAMPLES]]
    return MarkedRows(len(places), numbers[0], first_row + int(places[-1]), tuple(numbers))


def join_rows(parts: list[MarkedRows]) -> MarkedRows:
    """Rows of several pieces, or of one for several reasons."""
    there = [part for part in parts if part.count]
    if not there:
        return MarkedRows()
    examples = [number for part in there for number in part.examples]
    return MarkedRows(
        sum(part.count for part in there),
        min(part.first for part in there),
        max(part.last for part in there),
        tuple(examples[:: -(-len(examples) // _EXAMPLES_IN_ALL)]),
    )
