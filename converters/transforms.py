"""What families do to tensors on the way: lazily, a few rows at a time.

Readers are module-level functions with their arguments bound, no closures: so a tensor can be pickled and
read in another process (core/byte_source.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from ..core.errors import CheckpointError, WeightsElsewhere
from ..core.tensor import Array, DType, Tensor
from ..quant.ggml import widened
from .family import Sizes, Transform


def interleave_heads(heads: str) -> Transform:
    """Reorder the rows of each attention head for ggml's rotary embedding of neighbours.

    ``(heads * head_dim, hidden) -> (heads * head_dim, hidden)``, also ``(heads * head_dim,)``. Hugging
    Face rotates the first half of a head's dimensions with the second half; llama.cpp's ``llama`` graph
    rotates neighbours (LLAMA_ROPE_TYPE_NORM), so rows 0, 1, 2 … of the result are rows 0, d/2, 1, d/2+1 …
    of the source. ``heads`` is the family's word for the number of heads.
    """

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        (source,) = sources
        return _rows_of_heads(source, _neighbours(source.rows // sizes[heads]))

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        return (_rows_of_heads(target, np.argsort(_neighbours(target.rows // sizes[heads]))),)

    return Transform(apply, undo)


def _neighbours(head_dim: int) -> Array:
    """0, d/2, 1, d/2+1 …"""
    return np.arange(head_dim).reshape(2, head_dim // 2).T.ravel()


def halve_rotary(heads: str, rotary: str) -> Transform:
    """Reorder the first ``rotary`` rows of each attention head, from neighbours rotated together to halves.

    ``(heads * head_dim, hidden) -> (heads * head_dim, hidden)``. GPT-J rotates dimension 0 with 1, 2 with 3 …
    of the first ``rotary``; llama.cpp's ``phi2`` graph the first half of them with the second
    (LLAMA_ROPE_TYPE_NEOX). So of those rows come first all even ones, then all odd ones; the rest stays.
    ``heads`` and ``rotary`` are the family's words.
    """

    def order(tensor: Tensor, sizes: Sizes) -> Array:
        rotated, head_dim = sizes[rotary], tensor.rows // sizes[heads]
        places: Array = np.r_[0:rotated:2, 1:rotated:2, rotated:head_dim]
        return places

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        (source,) = sources
        return _rows_of_heads(source, order(source, sizes))

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        return (_rows_of_heads(target, np.argsort(order(target, sizes))),)

    return Transform(apply, undo)


def group_by_part(heads: str, parts: str) -> Transform:
    """Reorder rows that lie head by head, each with its parts, to part by part.

    ``(heads * parts * head_dim, hidden)``, also ``(heads * parts * head_dim,)``: query, key and value of head
    0, then of head 1 … to all queries, all keys, all values. ``heads`` and ``parts`` are the family's words.
    """

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        (source,) = sources
        return _regrouped(source, sizes[heads], sizes[parts])

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        return (_regrouped(target, sizes[parts], sizes[heads]),)

    return Transform(apply, undo)


def _regrouped(source: Tensor, outer: int, inner: int) -> Tensor:
    """Rows ``(outer, inner, size)`` to ``(inner, outer, size)``; groups of ``size`` rows are read whole."""
    size = source.rows // (outer * inner)
    return replace(source, read=partial(_read_regrouped, source, outer, inner), granule=size)


def _read_regrouped(source: Tensor, outer: int, inner: int, start: int, stop: int) -> Array:
    size = source.rows // (outer * inner)
    first, last = start // size, -(-stop // size)
    places = [(group % outer) * inner + group // outer for group in range(first, last)]
    rows = np.concatenate([source.read(place * size, (place + 1) * size) for place in places])
    return rows[start - first * size : stop - first * size]


def stack() -> Transform:
    """Matrices of one shape as one tensor of three axes, one after the other; an expert is read at a time."""

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        return [_part(target, place) for place in range(target.rows)]

    return Transform(lambda sources, sizes: stacked(sources), undo)


def stacked(sources: Sequence[Tensor]) -> Tensor:
    """``(n, *shape)`` of n tensors of one shape and type. Raises CheckpointError where types differ."""
    first = sources[0]
    if any(source.dtype is not first.dtype for source in sources):
        raise CheckpointError(
            f"{first.name}: the {len(sources)} tensors to be merged are not all {first.dtype.value}",
            hint="convert them to one type first",
        )
    read = partial(_read_stacked, tuple(sources))
    return Tensor(first.name, (len(sources), *first.shape), first.dtype, read, origin=first.origin)


def _read_stacked(sources: Sequence[Tensor], start: int, stop: int) -> Array:
    return np.stack([source.read(0, source.rows) for source in sources[start:stop]])


def _part(stack: Tensor, place: int) -> Tensor:
    """One of the tensors of a stack."""
    read = partial(_read_part, stack, place)
    return Tensor(stack.name, stack.shape[1:], stack.dtype, read, stack.shape[1], stack.origin)


def _read_part(stack: Tensor, place: int, start: int, stop: int) -> Array:
    rows: Array = stack.read(place, place + 1)[0, start:stop]
    return rows


def concatenated(sources: Sequence[Tensor]) -> Tensor:
    """``(n1 + n2 + …, *shape)`` of tensors of one type that differ in rows only."""
    starts = [0]
    for source in sources:
        starts.append(starts[-1] + source.rows)
    first, read = sources[0], partial(_read_concatenated, tuple(zip(sources, starts, strict=False)))
    return Tensor(first.name, (starts[-1], *first.shape[1:]), first.dtype, read, origin=first.origin)


def _read_concatenated(sources: Sequence[tuple[Tensor, int]], start: int, stop: int) -> Array:
    parts = [
        source.read(max(start - first, 0), min(stop - first, source.rows))
        for source, first in sources
        if first < stop and start < first + source.rows
    ]
    return np.concatenate(parts)


def as_a_copy() -> Transform:
    """A source another row has already made a tensor of, for graphs that insist on a second one.

    It does not count among the model's weights again.
    """
    return Transform(
        lambda sources, sizes: replace(sources[0], computed=True), lambda target, sizes: (target,)
    )


def plus_one() -> Transform:
    """Each weight and one, in float32: Gemma's norms multiply by that, llama.cpp's by the weight alone."""
    return Transform(
        lambda sources, sizes: _shifted(sources[0], 1.0), lambda target, sizes: (_shifted(target, -1.0),)
    )


def _shifted(source: Tensor, by: float) -> Tensor:
    return replace(source, dtype=DType.F32, read=partial(_read_shifted, source, by), stored=None)


def _read_shifted(source: Tensor, by: float, start: int, stop: int) -> Array:
    return read_wide(source, start, stop) + np.float32(by)


def read_wide(source: Tensor, start: int, stop: int) -> npt.NDArray[np.float32]:
    """Rows of a tensor in float32, in an array of their own."""
    return widened(source.read(start, stop), source.dtype)


def _rows_of_heads(source: Tensor, order: Array) -> Tensor:
    """``source`` with the rows of each group of ``len(order)`` in that order, read by whole groups."""
    return replace(source, read=partial(_read_heads, source, order), granule=len(order))


def _read_heads(source: Tensor, order: Array, start: int, stop: int) -> Array:
    size = len(order)
    first, last = start // size, -(-stop // size)
    rows = source.read(first * size, last * size)
    by_head = rows.reshape(last - first, size, *rows.shape[1:])[:, order]
    return np.ascontiguousarray(by_head.reshape(rows.shape)[start - first * size : stop - first * size])


def same_weights(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits; reads both in slabs of some megabytes.

    Where only headers are here, for a plan, a row in the middle stands for all.
    """
    if one.shape != other.shape or one.dtype is not other.dtype:
        return False
    step = max(1, (1 << 20) // max(1, one.row_elements))
    try:
        return all(
            np.array_equal(one.read(i, min(i + step, one.rows)), other.read(i, min(i + step, one.rows)))
            for i in range(0, one.rows, step)
        )
    except WeightsElsewhere:
        middle = one.rows // 2
        return np.array_equal(one.read(middle, middle + 1), other.read(middle, middle + 1))
