"""Activations as operators, by the names of converters/activations.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import activations
from .graph import Graph

_STEEP = 1.702  # of transformers' QuickGELUActivation


def activated(graph: Graph, values: str, name: str) -> str:
    """``values`` through the activation called ``name``, which is one of ``activations.IN_ONNX``."""
    return next(make for names, make in _OPERATORS.items() if name in names)(graph, values)


def _silu(graph: Graph, values: str) -> str:
    return graph.op("Mul", values, graph.op("Sigmoid", values))


def _quick_gelu(graph: Graph, values: str) -> str:
    steep = graph.op("Mul", values, graph.number(_STEEP))
    return graph.op("Mul", values, graph.op("Sigmoid", steep))


def _squared_relu(graph: Graph, values: str) -> str:
    positive = graph.op("Relu", values)
    return graph.op("Mul", positive, positive)


_OPERATORS: Mapping[frozenset[str], Callable[[Graph, str], str]] = {
    activations.SILU: _silu,
    activations.TANH_GELU: lambda graph, values: graph.op("Gelu", values, approximate="tanh"),
    activations.GELU: lambda graph, values: graph.op("Gelu", values),
    activations.QUICK_GELU: _quick_gelu,
    activations.RELU: lambda graph, values: graph.op("Relu", values),
    activations.RELU2: _squared_relu,
}
