"""T5 and its relatives as graphs: an encoder and its decoders.

They are split and named as optimum does it, so that its runners load them; a weight lies once in the external
data they share. KEByT5, ByT5, T5 v1.1, Flan-T5 and T5 v1.0 (not gated, its head the embedding, scaled) differ
in a few words of ``T5Shape`` only. A GBST-KEByT5 has its front end at the encoder's beginning and runs like
any other T5: its decoders are given the mask of the bytes and resize it themselves.

What flows between the layers is float32, which T5's range asks for. Vectors, relative biases and the GBST
front end are to be stored as F32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...onnx.activation_operators import apply_activation
from ...onnx.blocks import by_batch, rms_norm
from ...onnx.flavour import Given
from ...onnx.graph import Element, Graph
from ...onnx.masks import additive_mask, for_queries
from ...onnx.relative import relative_bias
from ...onnx.request import GraphRequest
from . import cache as caches
from .cache import Cache
from .facts import T5Facts
from .shape import BATCH, SOURCE, TARGET, EncoderFront, T5Shape, shape_of

ENCODER, MERGED = "encoder_model.onnx", "decoder_model_merged.onnx"
DECODER, DECODER_WITH_PAST = "decoder_model.onnx", "decoder_with_past_model.onnx"

_CACHES: Mapping[str, Callable[[Graph, T5Shape], Cache]] = {
    DECODER: caches.made,
    DECODER_WITH_PAST: caches.given,
    MERGED: caches.either,
}


def t5_graphs(request: GraphRequest[T5Facts], front: EncoderFront | None = None) -> dict[str, Graph]:
    """The graphs by their files' names; ``front`` stands before the encoder.

    The decoder is two graphs, without and with a cache, or merged into one.
    """
    shape = shape_of(request.facts, request.flags, front)
    graphs = {ENCODER: request.graph(ENCODER.partition(".")[0])}
    describe_encoder(graphs[ENCODER], shape, SOURCE)
    for file in (MERGED,) if request.merged else (DECODER, DECODER_WITH_PAST):
        graphs[file] = request.graph(file.partition(".")[0])
        _decoder(graphs[file], shape, _CACHES[file])
    return graphs


def describe_encoder(graph: Graph, shape: T5Shape, length: str) -> tuple[str, str]:
    """Ids and mask, both of that ``length``, to hidden states; these and the mask of their positions."""
    ids = graph.input("input_ids", Element.INT64, (BATCH, length))
    mask = graph.input("attention_mask", Element.INT64, (BATCH, length))
    values = graph.embedding(ids, shape.embedding)
    if shape.front is not None:
        values, mask = shape.front.embedded(graph, values, mask)
    lengths = graph.op("Shape", mask)
    keys = _range(graph, graph.number(0, Element.INT64), _length(graph, mask, 1))
    allowed = additive_mask(graph, mask)
    biases = [graph.op("Add", each, allowed) for each in _biases(graph, shape, "encoder", keys, keys)]
    rows = _as_rows(graph, values, shape.facts.hidden)
    for i in range(shape.facts.layers):
        block, bias = f"encoder.block.{i}.layer", biases[i % len(biases)]
        inner = _norm(graph, shape, rows, f"{block}.0.layer_norm")
        inner = _self_attention(graph, shape, f"{block}.0.SelfAttention", inner, lengths, bias)
        rows = graph.op("Add", rows, inner)
        rows = _feed_forward(graph, shape, f"{block}.1", rows)
    rows = _norm(graph, shape, rows, "encoder.final_layer_norm")
    states = by_batch(graph, rows, lengths, shape.facts.hidden, name="last_hidden_state")
    positions = shape.positions if length == SOURCE else length
    graph.output("last_hidden_state", Element.FLOAT, (BATCH, positions, shape.facts.hidden))
    return states, mask


def _decoder(graph: Graph, shape: T5Shape, cache_of: Callable[[Graph, T5Shape], Cache]) -> None:
    ids = graph.input("input_ids", Element.INT64, (BATCH, TARGET))
    mask = graph.input("encoder_attention_mask", Element.INT64, (BATCH, SOURCE))
    graph.output("logits", Element.FLOAT, (BATCH, TARGET, shape.facts.rows))
    cache, zero = cache_of(graph, shape), graph.number(0, Element.INT64)
    if shape.front is not None:
        mask = shape.front.resized_mask(graph, mask)
    lengths = graph.op("Shape", ids)
    before = _length(graph, cache.own[0][0], 2) if cache.own[0] else zero
    total = graph.op("Add", before, _length(graph, ids, 1))
    biases = _biases(graph, shape, "decoder", _range(graph, before, total), _range(graph, zero, total))
    cross_bias = for_queries(graph, additive_mask(graph, mask), graph.op("Shape", ids, start=1))
    rows = _as_rows(graph, graph.embedding(ids, shape.embedding), shape.facts.hidden)
    for i, (own, crossing) in enumerate(zip(cache.own, cache.crossing, strict=True)):
        block, names = f"decoder.block.{i}.layer", caches.present(i, "decoder")
        bias = biases[i % len(biases)]
        inner = _norm(graph, shape, rows, f"{block}.0.layer_norm")
        inner = _self_attention(
            graph, shape, f"{block}.0.SelfAttention", inner, lengths, bias, past=own, present=names
        )
        rows = graph.op("Add", rows, inner)
        inner = _norm(graph, shape, rows, f"{block}.1.layer_norm")
        place = f"{block}.1.EncDecAttention"
        inner = _cross_attention(graph, shape, place, inner, lengths, crossing, cross_bias)
        rows = graph.op("Add", rows, inner)
        rows = _feed_forward(graph, shape, f"{block}.2", rows)
    _logits(graph, shape, rows, lengths)


def _self_attention(
    graph: Graph,
    shape: T5Shape,
    place: str,
    rows: str,
    lengths: str,
    bias: str,
    past: Sequence[str] = (),
    present: Sequence[str] = (),
) -> str:
    """Rows to rows; keys and values that were there before come first, all of them are named ``present``."""
    width = shape.facts.heads * shape.facts.head_dim
    query, key, value = (
        by_batch(graph, graph.linear(rows, f"{place}.{each}.weight"), lengths, width) for each in "qkv"
    )
    given = Given(query, key, value, past, present)
    attended = graph.flavour.attended_all(graph, given, bias, shape.facts.heads, scale=1.0)
    return graph.linear(_as_rows(graph, attended, width), f"{place}.o.weight")


def _cross_attention(
    graph: Graph, shape: T5Shape, place: str, rows: str, lengths: str, keys_values: Sequence[str], bias: str
) -> str:
    heads, size = shape.facts.heads, shape.facts.head_dim
    queries = by_batch(graph, graph.linear(rows, f"{place}.q.weight"), lengths, heads * size)
    attended = graph.flavour.attended_across(graph, queries, keys_values, bias, heads, size)
    return graph.linear(_as_rows(graph, attended, heads * size), f"{place}.o.weight")


def _feed_forward(graph: Graph, shape: T5Shape, place: str, rows: str) -> str:
    dense, inner = f"{place}.DenseReluDense", _norm(graph, shape, rows, f"{place}.layer_norm")
    if shape.facts.gated:
        gate = apply_activation(graph, graph.linear(inner, f"{dense}.wi_0.weight"), shape.facts.activation)
        inner = graph.op("Mul", gate, graph.linear(inner, f"{dense}.wi_1.weight"))
    else:
        inner = apply_activation(graph, graph.linear(inner, f"{dense}.wi.weight"), shape.facts.activation)
    return graph.op("Add", rows, graph.linear(inner, f"{dense}.wo.weight"))


def _logits(graph: Graph, shape: T5Shape, rows: str, lengths: str) -> None:
    rows = _norm(graph, shape, rows, "decoder.final_layer_norm")
    if shape.facts.scaled:
        rows = graph.op("Mul", rows, graph.number(shape.facts.hidden**-0.5))
    by_batch(graph, graph.linear(rows, shape.head), lengths, shape.facts.rows, name="logits")


def _biases(graph: Graph, shape: T5Shape, side: str, queries: str, keys: str) -> list[str]:
    """Those of each block, or the one all blocks share."""
    causal = side == "decoder"
    layers = shape.facts.decoder_layers if causal else shape.facts.layers
    tables = [
        f"{side}.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight"
        for i in range(layers if shape.facts.own_biases else 1)
    ]
    far = shape.facts.max_distance
    return [relative_bias(graph, each, queries, keys, max_distance=far, causal=causal) for each in tables]


def _norm(graph: Graph, shape: T5Shape, rows: str, place: str) -> str:
    return rms_norm(graph, rows, place, shape.facts.epsilon)


def _as_rows(graph: Graph, values: str, width: int) -> str:
    """``(batch, length, …) -> (batch * length, width)``."""
    return graph.op("Reshape", values, graph.integers(-1, width))


def _length(graph: Graph, value: str, axis: int) -> str:
    """The length of an axis as a scalar."""
    return graph.op("Squeeze", graph.op("Shape", value, start=axis, end=axis + 1))


def _range(graph: Graph, start: str, stop: str) -> str:
    return graph.op("Range", start, stop, graph.number(1, Element.INT64))
