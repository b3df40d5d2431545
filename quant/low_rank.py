"""Whether a matrix was changed by a product of two thin ones, as merging an adapter (LoRA) does."""

from __future__ import annotations

import math

import numpy as np

from .formats import Format
from .ggml import Floats, dequantize, encode

ROWS = 512
"""Rows that are enough to tell: four times the highest rank adapters commonly have."""

_HALF = 1e-3  # relative error of weights that were bfloat16 on the way
_BEYOND = 1.25  # times the largest singular value rounding alone may have
_REST = 2.0  # times the energy rounding alone has
_SMALLEST = 64  # rows and columns, below which the largest singular value varies by more
_STEPS = 12
# Finer than q2_K, in which importance data alone made the error of outlying columns 1.3 times as directed.
_FINE = frozenset(
    ("q3_K", "q4_0", "q4_1", "q4_K", "q5_0", "q5_1", "q5_K", "q6_K", "q8_0", "iq4_nl", "iq4_xs")
)


def rank_of_update(changed: Floats, original: Floats, error: float) -> int | None:
    """The rank of the difference of two matrices (rows, columns), or None where it is not a low one.

    ``error`` is the relative error that storing makes. Noise of an RMS r has no singular value beyond
    ``r * (sqrt(rows) + sqrt(columns))``; what lies beyond is the update. A low rank is at most a quarter of
    the smaller side, and what is left without it no more than rounding.
    """
    rows, columns = original.shape
    values = np.linalg.svd(changed.astype(np.float64) - original, compute_uv=False)
    noise = max(error, _HALF) * float(np.sqrt(np.square(original, dtype=np.float64).sum()))
    edge = _BEYOND * noise * (1 / math.sqrt(rows) + 1 / math.sqrt(columns))
    rank = int((values > edge).sum())
    low = 0 < rank <= min(rows, columns) // 4
    return rank if low and float((values[rank:] ** 2).sum()) <= _REST * noise**2 else None


def hides_update(stored: Floats, original: Floats, format: Format) -> bool:
    """Whether the error of weights stored in ``format`` has a direction that encoding does not give it.

    That of most weights has none. Where columns differ a hundredfold it has, and with importance data at most
    1.1 times as much (tests/test_strangers.py).
    """
    found = directedness(stored, original) if format.name in _FINE else 0.0
    if found <= _BEYOND:
        return False
    data = np.empty(format.tensor_bytes(original.shape), np.uint8)
    encode(format, np.ascontiguousarray(original), data)
    return found > _BEYOND * directedness(dequantize(format, data, original.shape), original)


def directedness(stored: Floats, original: Floats) -> float:
    """The largest singular value of the error, in units of what noise has: 1 or a little less is rounding.

    An update far smaller than the rounding shows like that. Rounding errors of a row are first freed of what
    is proportional to it (importance data shrink weights), then rows and columns are scaled to equal errors:
    what is left has no singular value beyond ``sqrt(rows) + sqrt(columns)`` if it is noise. Equal rows have
    equal errors, so each counts once. 0 where a side is too short to tell.
    """
    _, places = np.unique(original, axis=0, return_index=True)
    weights = original[np.sort(places)]
    if min(weights.shape) < _SMALLEST:
        return 0.0
    error = stored[np.sort(places)] - weights
    shrunk = np.einsum("ij,ij->i", error, weights) / np.maximum(
        np.einsum("ij,ij->i", weights, weights), 1e-30
    )
    error -= shrunk[:, None] * weights
    for axis in (1, 0, 1, 0):
        error /= np.maximum(np.sqrt(np.square(error).mean(axis, keepdims=True)), 1e-30)
    guess = np.random.default_rng(0).standard_normal((error.shape[1], 4)).astype(np.float32)
    for _ in range(_STEPS):  # the largest singular value, from below
        guess = np.linalg.qr(error.T @ (error @ guess))[0].astype(np.float32)
    return float(np.linalg.norm(error @ guess, 2)) / sum(math.sqrt(size) for size in error.shape)
