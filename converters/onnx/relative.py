"""T5's relative positions: what attention scores gain by the distance of key and query."""

from __future__ import annotations

import math

import numpy as np

from ...core.tensor import Array
from .graph import Element, Graph
from .masks import least_float


def relative_bias(
    graph: Graph, table: str, queries: str, keys: str, *, max_distance: int, causal: bool
) -> str:
    """``(1, heads, queries, keys)`` from the positions of both, vectors of int64.

    ``table (buckets, heads)`` is the checkpoint's. A decoder's (``causal``) knows distances to what lies
    before only; keys behind a query get the least float.
    """
    buckets = relative_buckets(graph.tensors[table].rows, max_distance, both_ways=not causal)
    by_bucket = graph.op("Gather", graph.weight(table), graph.constant(buckets))
    by_distance = graph.op("Transpose", by_bucket, perm=(1, 0))
    distances = graph.op("Sub", keys, graph.op("Unsqueeze", queries, graph.integers(1)))
    nearest, farthest = (graph.number(each, Element.INT64) for each in (-max_distance, max_distance))
    places = graph.op("Add", graph.op("Clip", distances, nearest, farthest), farthest)
    bias = graph.op("Gather", by_distance, places, axis=1)
    if causal:
        later = graph.op("Greater", distances, graph.number(0, Element.INT64))
        bias = graph.op("Where", later, least_float(graph), bias)
    return graph.op("Unsqueeze", bias, graph.integers(0))


def relative_buckets(buckets: int, max_distance: int, *, both_ways: bool) -> Array:
    """The bucket of each distance from ``-max_distance`` to ``max_distance`` (key minus query), as int64.

    Half of the buckets are for single distances, the others grow like a logarithm up to ``max_distance``; an
    encoder's are for both directions, a decoder's for what lies before (T5's paper, arXiv 1910.10683,
    section 2.1; float32 as in transformers' modeling_t5.py).
    """
    distances = np.arange(-max_distance, max_distance + 1)
    one_way = buckets // 2 if both_ways else buckets
    away = np.abs(distances) if both_ways else np.maximum(-distances, 0)
    single = one_way // 2
    growth = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(single))
    growth = growth / np.float32(math.log(max_distance / single)) * np.float32(one_way - single)
    far = np.minimum(single + growth.astype(np.int64), one_way - 1)
    numbers = np.where(away < single, away, far)
    return (numbers + one_way * (distances > 0) if both_ways else numbers).astype(np.int64)
