"""Transforms that turn, join, scale and cut tensors: lazily, and back again. Pickles like transforms.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from ..core.tensor import Array, DType, Tensor
from ..quant.ggml import to_float32
from .family import Sizes, Transform
from .transforms import concatenated


def transpose() -> Transform:
    """``(in, out) -> (out, in)``: how GPT-2's Conv1D holds a matrix, and how everybody else does."""
    return Transform(
        lambda sources, sizes: transposed(sources[0]), lambda target, sizes: (transposed(target),)
    )


def transposed(source: Tensor) -> Tensor:
    """A matrix with rows and columns exchanged; twice is the matrix itself."""
    if isinstance(source.read, partial) and source.read.func is _read_transposed:
        original: Tensor = source.read.args[0]
        return replace(original, name=source.name)
    read = partial(_read_transposed, source)
    return replace(source, shape=source.shape[::-1], read=read, granule=1, stored=None)


def _read_transposed(source: Tensor, start: int, stop: int) -> Array:
    return np.ascontiguousarray(source.read(0, source.rows)[:, start:stop].T)


def upright(tensors: Mapping[str, Tensor], is_turned: Callable[[str], bool]) -> dict[str, Tensor]:
    """``tensors`` with those matrices transposed whose names are said to be turned."""
    return {
        name: transposed(tensor) if is_turned(name) and len(tensor.shape) == 2 else tensor
        for name, tensor in tensors.items()
    }


def join() -> Transform:
    """Tensors of one shape, one below the other: query, key and value as one matrix (or bias)."""

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        each = target.rows // 3
        return [_rows(target, part * each, (part + 1) * each) for part in range(3)]

    return Transform(lambda sources, sizes: concatenated(sources), undo)


def _rows(source: Tensor, first: int, last: int) -> Tensor:
    read = partial(_read_rows, source, first)
    return replace(source, shape=(last - first, *source.shape[1:]), read=read, stored=None)


def _read_rows(source: Tensor, first: int, start: int, stop: int) -> Array:
    return source.read(first + start, first + stop)


def without_first(count: int) -> Transform:
    """A table without its first ``count`` rows; back again, these are zeros."""

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        read = partial(_read_behind_zeros, target, count)
        return (replace(target, shape=(target.rows + count, *target.shape[1:]), read=read, stored=None),)

    return Transform(lambda sources, sizes: _rows(sources[0], count, sources[0].rows), undo)


def _read_behind_zeros(source: Tensor, count: int, start: int, stop: int) -> Array:
    zeros = np.zeros((max(0, min(stop, count) - start), *source.shape[1:]), source.dtype.storage)
    rest = source.read(max(0, start - count), max(0, stop - count))
    return np.concatenate([zeros, rest])


def multiply(factor: Callable[[Sizes], float]) -> Transform:
    """Every weight times ``factor``, in float32."""
    return Transform(
        lambda sources, sizes: times(sources[0], factor(sizes)),
        lambda target, sizes: (times(target, 1 / factor(sizes)),),
    )


def times(source: Tensor, factor: float) -> Tensor:
    """A tensor times a number, in float32."""
    return replace(source, dtype=DType.F32, read=partial(_read_times, source, factor), stored=None)


def _read_times(source: Tensor, factor: float, start: int, stop: int) -> Array:
    rows = source.read(start, stop)
    wide = np.empty(rows.shape, np.float32)
    to_float32(np.ascontiguousarray(rows), source.dtype, wide)
    with np.errstate(all="ignore"):  # the writer reports infinite weights
        wide *= np.float32(factor)
    return wide


def computed(name: str, values: Array, origin: str) -> Tensor:
    """A float32 tensor that follows from the configuration."""
    read = partial(_read_rows_of, values)
    return Tensor(name, values.shape, DType.F32, read, origin=origin, computed=True)


def _read_rows_of(values: Array, start: int, stop: int) -> Array:
    return values[start:stop]
