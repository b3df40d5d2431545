"""Transforms that turn, join, scale and cut tensors: lazily, and back again. Pickles like transforms.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..core.errors import CheckpointError
from ..core.tensor import Array, DType, Tensor
from .family import Sizes, Transform
from .transforms import concatenated, read_wide

_AT_ONCE = 1 << 24  # weights, 64 MiB of float32


def transpose() -> Transform:
    """``(in, out) -> (out, in)``: how GPT-2's Conv1D holds a matrix, and how everybody else does.

    Of three axes, the last two.
    """
    return Transform(
        lambda sources, sizes: transposed(sources[0]), lambda target, sizes: (transposed(target),)
    )


def transposed(source: Tensor) -> Tensor:
    """A matrix with rows and columns exchanged; twice is the matrix itself."""
    if isinstance(source.read, partial) and source.read.func is _read_transposed:
        original: Tensor = source.read.args[0]
        return replace(original, name=source.name)
    if len(source.shape) == 3:
        turned = (source.shape[0], source.shape[2], source.shape[1])
        return replace(source, shape=turned, read=partial(_read_each_transposed, source), stored=None)
    shape = source.shape[::-1]
    # Any of its rows take reading all of the source, so many are read at once.
    granule = max(1, min(shape[0], _AT_ONCE // max(1, shape[1])))
    return replace(source, shape=shape, read=partial(_read_transposed, source), granule=granule, stored=None)


def _read_transposed(source: Tensor, start: int, stop: int) -> Array:
    return np.ascontiguousarray(source.read(0, source.rows)[:, start:stop].T)


def _read_each_transposed(source: Tensor, start: int, stop: int) -> Array:
    return np.ascontiguousarray(source.read(start, stop).transpose(0, 2, 1))


def upright(tensors: Mapping[str, Tensor], is_turned: Callable[[str], bool]) -> dict[str, Tensor]:
    """``tensors`` with those matrices transposed whose names are said to be turned."""
    return {
        name: transposed(tensor) if is_turned(name) and len(tensor.shape) == 2 else tensor
        for name, tensor in tensors.items()
    }


def join(parts: int) -> Transform:
    """``parts`` tensors of one shape as one, one below the other: query, key and value; gate and up."""

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
        each = target.rows // parts
        return [rows_between(target, part * each, (part + 1) * each) for part in range(parts)]

    return Transform(apply, undo)


def rows_between(source: Tensor, first: int, last: int) -> Tensor:
    """Rows ``first`` to ``last`` as a tensor of their own."""
    read = partial(_read_rows, source, first)
    return replace(source, shape=(last - first, *source.shape[1:]), read=read, granule=1, stored=None)


def _read_rows(source: Tensor, first: int, start: int, stop: int) -> Array:
    return source.read(first + start, first + stop)


def without_first(count: int | str) -> Transform:
    """A table without its first ``count`` rows (a number or a family's word); the way back makes zeros."""

    def number(sizes: Sizes) -> int:
        return sizes[count] if isinstance(count, str) else count

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        return rows_between(sources[0], number(sizes), sources[0].rows)

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        first = number(sizes)
        read = partial(_read_behind_zeros, target, first)
        return (replace(target, shape=(target.rows + first, *target.shape[1:]), read=read, stored=None),)

    return Transform(apply, undo)


def _read_behind_zeros(source: Tensor, count: int, start: int, stop: int) -> Array:
    zeros = np.zeros((max(0, min(stop, count) - start), *source.shape[1:]), source.dtype.storage)
    rest = source.read(max(0, start - count), max(0, stop - count))
    return np.concatenate([zeros, rest])


def multiply(factor: Callable[[Sizes], float], *, copy: bool = False) -> Transform:
    """Every weight times ``factor``, in float32; as it is where that is 1.

    ``copy``: another row makes a tensor of the same source, so that this one does not count among the model's
    weights.
    """

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        made = _times(sources[0], factor(sizes))
        return replace(made, computed=True) if copy else made

    return Transform(apply, lambda target, sizes: (_times(target, 1 / factor(sizes)),))


def _times(source: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return source
    origin = f"{source.origin or source.name}, times {factor:g}"  # else messages name weights nobody has
    read = partial(_read_times, source, factor)
    return replace(source, dtype=DType.F32, read=read, stored=None, origin=origin)


def _read_times(source: Tensor, factor: float, start: int, stop: int) -> Array:
    wide: Array = read_wide(source, start, stop)
    with np.errstate(all="ignore"):  # the writer reports infinite weights
        wide *= np.float32(factor)
    return wide


def computed(name: str, values: Array, origin: str) -> Tensor:
    """A float32 tensor that follows from the configuration."""
    read = partial(_read_rows_of, values)
    return Tensor(name, values.shape, DType.F32, read, origin=origin, computed=True)


def _read_rows_of(values: Array, start: int, stop: int) -> Array:
    return values[start:stop]
