"""What a family's description of its ONNX graphs is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from ...core.checkpoint import Checkpoint
from ...quant.formats import Format
from .flavours import STANDARD, Flavour
from .graph import Graph

F = TypeVar("F")


@dataclass(frozen=True)
class GraphRequest(Generic[F]):
    """A checkpoint that fits its family, by ``facts`` and ``flags``, and how its weights are to be stored.

    ``formats``, ``accuracy_level``, ``flavour`` and ``halves`` are as of ``Graph``; ``merged``: a decoder
    with and without a cache is one graph, where a family has two.
    """

    checkpoint: Checkpoint
    facts: F
    flags: frozenset[str]
    formats: Mapping[str, Format]
    accuracy_level: int = 0
    merged: bool = False
    flavour: Flavour = STANDARD
    halves: bool = False

    def graph(self, name: str) -> Graph:
        """An empty graph of that name over the checkpoint's tensors."""
        return Graph(
            name,
            self.checkpoint.tensors,
            self.formats,
            self.accuracy_level,
            flavour=self.flavour,
            halves=self.halves,
        )


def one_graph(
    describe: Callable[[Graph, GraphRequest[F]], None],
) -> Callable[[GraphRequest[F]], dict[str, Graph]]:
    """The graphs of a decoder-only family: ``model.onnx``, as ``describe`` fills it."""

    def graphs(request: GraphRequest[F]) -> dict[str, Graph]:
        graph = request.graph("model")
        describe(graph, request)
        return {"model.onnx": graph}

    return graphs
