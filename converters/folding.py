"""Numbers a graph does not multiply by, multiplied into the matrices around the place: lazily, and back.

A factor travels among the sizes of a family's shapes, which are whole numbers, as two of them: every float is
a ratio of whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..core.errors import CheckpointError
from ..core.tensor import Array, DType, Tensor
from ..quant.ggml import to_float32
from .family import Sizes, Transform
from .transforms import concatenated


def factor_sizes(word: str, factor: float) -> dict[str, int]:
    """``factor`` as words of a family's sizes, for ``times(word)``."""
    above, below = factor.as_integer_ratio()
    return {f"{word}, above": above, f"{word}, below": below}


def times(word: str, *, copy: bool = False) -> Transform:
    """The source in float32, each weight times the factor ``word``; as it is where that is 1.

    ``copy``: another row makes a tensor of the same source, so that this one does not count among the model's
    weights.
    """

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        made = _times(sources[0], _factor(sizes, word))
        return replace(made, computed=True) if copy else made

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        return (_times(target, 1 / _factor(sizes, word)),)

    return Transform(apply, undo)


def followed_by(first: Transform, second: Transform) -> Transform:
    """``second`` of what ``first`` makes of its sources."""

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        return second.apply((first.apply(sources, sizes),), sizes)

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        (made,) = second.undo(target, sizes)
        return first.undo(made, sizes)

    return Transform(apply, undo)


def joined_rows(parts: int) -> Transform:
    """``parts`` matrices of one shape as one, the rows of the first first: gate and up of one product."""

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        first = sources[0]
        for other in sources[1:]:
            if (other.shape, other.dtype) != (first.shape, first.dtype):
                raise CheckpointError(
                    f"{other.name} is {list(other.shape)} in {other.dtype.value}, {first.name} "
                    f"{list(first.shape)} in {first.dtype.value}; they become one matrix and must be alike",
                    hint="check that all weight files belong to one model",
                )
        return concatenated(sources)

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        rows = target.rows // parts
        shape = (rows, *target.shape[1:])
        return [
            replace(
                target, shape=shape, read=partial(_read_from, target, part * rows), granule=1, stored=None
            )
            for part in range(parts)
        ]

    return Transform(apply, undo)


def _factor(sizes: Sizes, word: str) -> float:
    return sizes[f"{word}, above"] / sizes[f"{word}, below"]


def _times(source: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return source
    return replace(source, dtype=DType.F32, read=partial(_read_times, source, factor), stored=None)


def _read_times(source: Tensor, factor: float, start: int, stop: int) -> Array:
    rows = source.read(start, stop)
    wide = np.empty(rows.shape, np.float32)
    to_float32(np.ascontiguousarray(rows), source.dtype, wide)
    with np.errstate(all="ignore"):  # the writer reports infinite weights
        wide *= np.float32(factor)
    return wide


def _read_from(target: Tensor, first: int, start: int, stop: int) -> Array:
    return target.read(first + start, first + stop)
