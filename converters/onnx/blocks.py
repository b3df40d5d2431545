"""Blocks that graphs of several families share, named for what they compute. Values are rows ``(n, width)``.

``place`` is the checkpoint's name of a module: its tensors are ``place.weight`` and, where there is one,
``place.bias``.
"""

from __future__ import annotations

from collections.abc import Callable

from .activation_operators import apply_activation
from .graph import Graph


def linear(graph: Graph, rows: str, place: str) -> str:
    """Rows times a matrix, and its bias where there is one."""
    bias = f"{place}.bias"
    return graph.linear(rows, f"{place}.weight", bias if bias in graph.tensors else None)


def by_batch(graph: Graph, rows: str, lengths: str, width: int, *, name: str | None = None) -> str:
    """Rows ``(batch * length, width) -> (batch, length, width)``; ``lengths`` are batch and length."""
    return graph.op("Reshape", rows, graph.op("Concat", lengths, graph.integers(width), axis=0), name=name)


def rms_norm(graph: Graph, rows: str, place: str, epsilon: float) -> str:
    """Each row divided by its root mean square, times the weights."""
    return graph.flavour.rms_norm(graph, rows, graph.weight(f"{place}.weight"), epsilon)


def rms_norm_plus_one(graph: Graph, rows: str, place: str, epsilon: float) -> str:
    """Each row divided by its root mean square, times one more than the weights."""
    weights = graph.op("Add", graph.weight(f"{place}.weight"), graph.number(1.0))
    return graph.flavour.rms_norm(graph, rows, weights, epsilon)


def head_norm(
    graph: Graph,
    rows: str,
    place: str,
    size: int,
    epsilon: float,
    norm: Callable[[Graph, str, str, float], str] = rms_norm,
) -> str:
    """A ``norm`` of every head of ``size`` by itself: rows ``(n, heads * size) -> (n * heads, size)``."""
    return norm(graph, graph.op("Reshape", rows, graph.integers(-1, size)), place, epsilon)


def multiplied(graph: Graph, rows: str, factor: float) -> str:
    """Rows times a number."""
    return rows if factor == 1 else graph.op("Mul", rows, graph.number(factor))


def layer_norm(graph: Graph, rows: str, place: str, epsilon: float) -> str:
    """Each row with its mean taken off, divided by its standard deviation, times weights, plus a bias."""
    weight, bias = graph.weight(f"{place}.weight"), graph.weight(f"{place}.bias")
    return graph.op("LayerNormalization", rows, weight, bias, axis=-1, epsilon=epsilon)


def gated_feed_forward(graph: Graph, rows: str, place: str, activation: str) -> str:
    """``down_proj(activation(gate_proj(rows)) * up_proj(rows))``, the three under ``place``."""
    gate = apply_activation(graph, linear(graph, rows, f"{place}.gate_proj"), activation)
    inner = graph.op("Mul", gate, linear(graph, rows, f"{place}.up_proj"))
    return linear(graph, inner, f"{place}.down_proj")


def feed_forward(graph: Graph, rows: str, up: str, down: str, activation: str) -> str:
    """``down(activation(up(rows)))``."""
    return linear(graph, apply_activation(graph, linear(graph, rows, up), activation), down)
