"""Feed-forward layers of many small networks, of which a router chooses a few for each token."""

from __future__ import annotations

from .blocks import gated_feed_forward, linear
from .graph import Element, Graph


def experts(
    graph: Graph, rows: str, place: str, *, count: int, used: int, normed: bool, activation: str
) -> str:
    """What ``used`` of ``count`` experts make of each of ``rows (n, hidden)``, weighted by the router.

    ``place`` is the checkpoint's name of the layer, ``place.gate`` the router, ``place.experts.0`` the first
    expert; ``normed``: the weights of the chosen add to 1. An expert computes the rows it was chosen for, and
    no others. A *slot* is one of the ``n * used`` pairs of a row and an expert.
    """
    odds = graph.op("Softmax", graph.exact(linear(graph, rows, f"{place}.gate")), axis=-1)
    weights, chosen = graph.ops("TopK", odds, graph.integers(used), outputs=(None, None), axis=-1)
    if normed:
        weights = graph.op("Div", weights, graph.op("ReduceSum", weights, graph.integers(1)))
    weights = graph.flowing(weights)
    flat = graph.op("Reshape", chosen, graph.integers(-1))
    slots, made = [], []
    for expert in range(count):
        mine = graph.op("NonZero", graph.op("Equal", flat, graph.number(expert, Element.INT64)))
        mine = graph.op("Squeeze", mine, graph.integers(0))
        given = graph.op("Gather", rows, graph.op("Div", mine, graph.number(used, Element.INT64)))
        slots.append(mine)
        made.append(gated_feed_forward(graph, given, f"{place}.experts.{expert}", activation))
    order = graph.op("Unsqueeze", graph.op("Concat", *slots, axis=0), graph.integers(1))
    together = graph.op("Concat", *made, axis=0)
    by_slot = graph.op("ScatterND", together, order, together)  # every slot once: put in order
    hidden = graph.tensors[f"{place}.gate.weight"].shape[1]
    by_row = graph.op("Reshape", by_slot, graph.integers(-1, used, hidden))
    weighted = graph.op("Mul", by_row, graph.op("Unsqueeze", weights, graph.integers(2)))
    return graph.op("ReduceSum", weighted, graph.integers(1), keepdims=0)
