"""Activations as operators, by the names of converters/activation_names.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .. import activation_names
from .graph import Graph

_STEEP = 1.702  # of transformers' QuickGELUActivation


def apply_activation(graph: Graph, values: str, name: str) -> str:
    """``values`` through the activation called ``name``, which is one of ``activation_names.IN_ONNX``."""
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
    activation_names.SILU: _silu,
    activation_names.TANH_GELU: lambda graph, values: graph.op("Gelu", values, approximate="tanh"),
    activation_names.GELU: lambda graph, values: graph.op("Gelu", values),
    activation_names.QUICK_GELU: _quick_gelu,
    activation_names.RELU: lambda graph, values: graph.op("Relu", values),
    activation_names.RELU2: _squared_relu,
}
