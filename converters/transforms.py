"""What recipes do to tensors on the way: lazily, a few rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..core.tensor import Array, Tensor
from .recipe import Sizes, Transform


def interleave_heads(heads: str) -> Transform:
    """Reorder the rows of each attention head for ggml's rotary embedding of neighbours.

    ``(heads * head_dim, hidden) -> (heads * head_dim, hidden)``, also ``(heads * head_dim,)``. Hugging
    Face rotates the first half of a head's dimensions with the second half; llama.cpp's ``llama`` graph
    rotates neighbours (LLAMA_ROPE_TYPE_NORM), so rows 0, 1, 2 … of the result are rows 0, d/2, 1, d/2+1 …
    of the source. ``heads`` is the recipe's word for the number of heads.
    """

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        (source,) = sources
        return rows_of_heads(source, _neighbours(source.rows // sizes[heads]))

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        return (rows_of_heads(target, np.argsort(_neighbours(target.rows // sizes[heads]))),)

    return Transform(apply, undo)


def _neighbours(head_dim: int) -> Array:
    """0, d/2, 1, d/2+1 …"""
    return np.arange(head_dim).reshape(2, head_dim // 2).T.ravel()


def halve_rotary(heads: str, rotary: str) -> Transform:
    """Reorder the first ``rotary`` rows of each attention head, from neighbours rotated together to halves.

    ``(heads * head_dim, hidden) -> (heads * head_dim, hidden)``. GPT-J rotates dimension 0 with 1, 2 with 3 …
    of the first ``rotary``; llama.cpp's ``phi2`` graph the first half of them with the second
    (LLAMA_ROPE_TYPE_NEOX). So of those rows come first all even ones, then all odd ones; the rest stays.
    ``heads`` and ``rotary`` are the recipe's words.
    """

    def order(tensor: Tensor, sizes: Sizes) -> Array:
        rotated, head_dim = sizes[rotary], tensor.rows // sizes[heads]
        found: Array = np.r_[0:rotated:2, 1:rotated:2, rotated:head_dim]
        return found

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        (source,) = sources
        return rows_of_heads(source, order(source, sizes))

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        return (rows_of_heads(target, np.argsort(order(target, sizes))),)

    return Transform(apply, undo)


def as_a_copy() -> Transform:
    """A source another row has already made a tensor of, for graphs that insist on a second one.

    It does not count among the model's weights again.
    """
    return Transform(
        lambda sources, sizes: replace(sources[0], computed=True), lambda target, sizes: (target,)
    )


def rows_of_heads(source: Tensor, order: Array) -> Tensor:
    """``source`` with the rows of each group of ``len(order)`` in that order, read by whole groups."""
    size = len(order)

    def read(start: int, stop: int) -> Array:
        first, last = start // size, -(-stop // size)
        rows = source.read(first * size, last * size)
        by_head = rows.reshape(last - first, size, *rows.shape[1:])[:, order]
        return np.ascontiguousarray(by_head.reshape(rows.shape)[start - first * size : stop - first * size])

    return replace(source, read=read, granule=size)


def same_weights(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits; reads both in slabs of some megabytes."""
    if one.shape != other.shape or one.dtype is not other.dtype:
        return False
    step = max(1, (1 << 20) // max(1, one.row_elements))
    return all(
        np.array_equal(one.read(i, min(i + step, one.rows)), other.read(i, min(i + step, one.rows)))
        for i in range(0, one.rows, step)
    )
