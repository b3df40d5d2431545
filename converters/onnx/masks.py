"""Attention masks as numbers that are added to scores."""

from __future__ import annotations

import numpy as np

from .graph import Element, Graph


def additive_mask(graph: Graph, mask: str) -> str:
    """``mask (batch, keys)``, 0 for padding, to ``(batch, 1, 1, keys)``: 0.0, for padding ``least_float``."""
    kept = graph.op("Unsqueeze", graph.cast(mask, Element.BOOL), graph.integers(1, 2))
    return graph.op("Where", kept, graph.number(0.0), least_float(graph))


def for_queries(graph: Graph, bias: str, queries: str) -> str:
    """A ``bias`` of one row of keys ``(…, …, 1, keys)`` repeated: ``(…, …, queries, keys)``.

    ``queries`` is a vector of one number. onnxruntime's Attention repeats a mask over batch and
    heads, but not over queries (attention_helper.h).
    """
    shape = graph.op("Concat", graph.integers(1, 1), queries, graph.integers(1), axis=0)
    return graph.op("Expand", bias, shape)


def least_float(graph: Graph) -> str:
    """The least float32: what is added to scores that are not to count. Unlike -inf it makes no NaN.

    In half precision half of the least, so that a score added to it does not make it infinite.
    """
    return graph.number(float(np.finfo(np.float32).min) if graph.flow == Element.FLOAT else -(2.0**15))
