"""What the nodes of an ONNX graph do with its matrices: look up rows of them, or multiply by them."""

from __future__ import annotations

from collections import ChainMap, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from .onnx_taps import PASSED, PRODUCTS

Use = Literal["rows", "product"]


def uses_of(graph: Any) -> dict[str, set[Use]]:
    """By the names of initializers, those of subgraphs included."""
    found: defaultdict[str, set[Use]] = defaultdict(set)
    for name, use in _uses(graph, {}):
        found[name].add(use)
    return dict(found)


def _uses(graph: Any, outside: Mapping[str, Any]) -> Iterator[tuple[str, Use]]:
    own = {name: node for node in graph.node for name in node.output}
    made = ChainMap(own, dict(outside))
    for node in graph.node:
        if node.op_type == "Gather":
            yield _stored(node.input[0], made), "rows"
        elif node.op_type in PRODUCTS:
            yield _stored(node.input[1], made), "product"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _uses(attribute.g, made)


def _stored(name: str, made: Mapping[str, Any]) -> str:
    """What a matrix is made of without changing its numbers."""
    while name in made and made[name].op_type in PASSED:
        name = made[name].input[0]
    return name
