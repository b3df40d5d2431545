"""Keys and values of a T5 decoder: of its own tokens, and of what the encoder returned.

Three ways to come by them, as optimum divides decoders: there are none yet, all are given, or, in a merged
decoder, ``use_cache_branch`` says which. Names are optimum's, all are ``(batch, heads, length, head_dim)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...onnx.graph import Element, Graph
from .shape import BATCH, PAST, TARGET, TOTAL, T5Shape

Pair = tuple[str, ...]


@dataclass(frozen=True)
class Cache:
    """By layer: keys and values of tokens before (an empty pair where there are none), and the encoder's."""

    own: Sequence[Pair]
    crossing: Sequence[Pair]


def present(layer: int, side: str) -> Pair:
    """What keys and values of a layer are called as results."""
    return _names("present", layer, side)


def made(graph: Graph, shape: T5Shape) -> Cache:
    """The first tokens: the encoder's keys and values are made, and are results."""
    _declare(graph, shape, {"decoder": TARGET, "encoder": shape.positions})
    states = _states(graph, shape)
    crossing = [present(i, "encoder") for i in range(shape.facts.decoder_layers)]
    for i, names in enumerate(crossing):
        _from_states(graph, shape, states, i, names)
    return Cache([()] * shape.facts.decoder_layers, crossing)


def given(graph: Graph, shape: T5Shape) -> Cache:
    """Further tokens: everything is given, and the encoder's is not returned again."""
    _declare(graph, shape, {"decoder": TOTAL})
    return _given(graph, shape)


def either(graph: Graph, shape: T5Shape) -> Cache:
    """Both in one graph, without branches: what does not count is cut down to no positions.

    Where ``use_cache_branch`` is false the given keys and values may be any, such as a placeholder of
    length 1 (optimum) or 0 (Transformers.js); where it is true, ``encoder_hidden_states`` may.
    """
    _declare(graph, shape, {"decoder": TOTAL, "encoder": shape.positions})
    use = graph.cast(graph.input("use_cache_branch", Element.BOOL, (1,)), Element.INT64)
    cache, states = _given(graph, shape), _states(graph, shape)
    states = _cut(graph, states, graph.op("Sub", graph.integers(1), use), 1)
    own = [tuple(_cut(graph, each, use, 2) for each in pair) for pair in cache.own]
    crossing = [present(i, "encoder") for i in range(shape.facts.decoder_layers)]
    for i, names in enumerate(crossing):
        new = _from_states(graph, shape, states, i, (None, None))
        for name, before, after in zip(names, cache.crossing[i], new, strict=True):
            graph.op("Concat", _cut(graph, before, use, 2), after, name=name, axis=2)
    return Cache(own, crossing)


def by_head(graph: Graph, shape: T5Shape, rows: str, lengths: str, name: str | None = None) -> str:
    """``(batch * length, heads * head_dim) -> (batch, heads, length, head_dim)``; ``lengths`` are two."""
    split = graph.op("Concat", lengths, graph.integers(shape.facts.heads, shape.facts.head_dim), axis=0)
    values = graph.op("Reshape", rows, split, allowzero=1)  # the length may be 0
    return graph.op("Transpose", values, name=name, perm=(0, 2, 1, 3))


def _declare(graph: Graph, shape: T5Shape, lengths: dict[str, str]) -> None:
    for i in range(shape.facts.decoder_layers):
        for side, length in lengths.items():
            for name in present(i, side):
                graph.output(name, Element.FLOAT, (BATCH, shape.facts.heads, length, shape.facts.head_dim))


def _given(graph: Graph, shape: T5Shape) -> Cache:
    def pair(layer: int, side: str, length: str) -> Pair:
        sizes = (BATCH, shape.facts.heads, length, shape.facts.head_dim)
        names = _names("past_key_values", layer, side)
        return tuple(graph.input(name, Element.FLOAT, sizes) for name in names)

    # In this order, layer by layer, optimum hands its cache over (modeling_seq2seq.py of optimum-onnx 0.1.0).
    both = [
        (pair(i, "decoder", PAST), pair(i, "encoder", shape.positions))
        for i in range(shape.facts.decoder_layers)
    ]
    return Cache([own for own, _ in both], [crossing for _, crossing in both])


def _states(graph: Graph, shape: T5Shape) -> str:
    sizes = (BATCH, shape.positions, shape.facts.hidden)
    return graph.input("encoder_hidden_states", Element.FLOAT, sizes)


def _from_states(
    graph: Graph, shape: T5Shape, states: str, layer: int, names: Sequence[str | None]
) -> list[str]:
    """Keys and values a layer makes of ``states (batch, length, hidden)``."""
    lengths = graph.op("Shape", states, end=2)
    rows = graph.op("Reshape", states, graph.integers(-1, shape.facts.hidden))
    place, pair = f"decoder.block.{layer}.layer.1.EncDecAttention", zip("kv", names, strict=True)
    return [
        by_head(graph, shape, graph.linear(rows, f"{place}.{each}.weight"), lengths, name)
        for each, name in pair
    ]


def _cut(graph: Graph, values: str, kept: str, axis: int) -> str:
    """``values``, their ``axis`` kept or cut down to nothing as ``kept``, a vector of one, is 1 or 0."""
    end = graph.op("Mul", graph.op("Shape", values, start=axis, end=axis + 1), kept)
    return graph.op("Slice", values, graph.integers(0), end, graph.integers(axis))


def _names(kind: str, layer: int, side: str) -> Pair:
    return f"{kind}.{layer}.{side}.key", f"{kind}.{layer}.{side}.value"
