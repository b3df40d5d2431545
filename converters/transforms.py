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

    def transform(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        (source,) = sources
        head_dim = source.rows // sizes[heads]
        order = np.arange(head_dim).reshape(2, head_dim // 2).T.ravel()

        def read(start: int, stop: int) -> Array:
            first, last = start // head_dim, -(-stop // head_dim)
            rows = source.read(first * head_dim, last * head_dim)
            by_head = rows.reshape(last - first, head_dim, *rows.shape[1:])[:, order]
            cut = by_head.reshape(rows.shape)[start - first * head_dim : stop - first * head_dim]
            return np.ascontiguousarray(cut)

        return replace(source, read=read, granule=head_dim)

    return transform


def same_weights(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits; reads both in slabs of some megabytes."""
    if one.shape != other.shape or one.dtype is not other.dtype:
        return False
    step = max(1, (1 << 20) // max(1, one.row_elements))
    return all(
        np.array_equal(one.read(i, min(i + step, one.rows)), other.read(i, min(i + step, one.rows)))
        for i in range(0, one.rows, step)
    )
