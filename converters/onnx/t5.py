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

from ...core.checkpoint import Checkpoint
from ...quant.formats import Format
from . import t5_cache
from .activation import activated
from .gbst import embedded, resized_mask
from .graph import Element, Graph
from .masks import additive_mask, for_queries
from .relative import relative_bias
from .t5_cache import Cache, by_head
from .t5_shape import BATCH, SOURCE, TARGET, T5Shape, read_shape

ENCODER, MERGED = "encoder_model.onnx", "decoder_model_merged.onnx"
DECODER, DECODER_WITH_PAST = "decoder_model.onnx", "decoder_with_past_model.onnx"

_CACHES: Mapping[str, Callable[[Graph, T5Shape], Cache]] = {
    DECODER: t5_cache.made,
    DECODER_WITH_PAST: t5_cache.given,
    MERGED: t5_cache.either,
}


def t5_graphs(
    checkpoint: Checkpoint, formats: Mapping[str, Format], accuracy_level: int = 0, *, merged: bool = False
) -> dict[str, Graph]:
    """The graphs of a checkpoint that fits its recipe (T5, MT5 or GBSWT5), by their files' names.

    ``formats`` and ``accuracy_level`` are as of ``Graph``. The decoder is two graphs, without and with a
    cache, or ``merged`` into one. Raises what the recipe raises for settings that make no sense.
    """
    shape, held = read_shape(checkpoint), checkpoint.tensors

    def graph(file: str) -> Graph:
        return Graph(file.partition(".")[0], held, formats, accuracy_level)

    graphs = {ENCODER: graph(ENCODER)}
    _encoder(graphs[ENCODER], shape)
    for file in (MERGED,) if merged else (DECODER, DECODER_WITH_PAST):
        graphs[file] = graph(file)
        _decoder(graphs[file], shape, _CACHES[file])
    return graphs


def _encoder(graph: Graph, shape: T5Shape) -> None:
    ids = graph.input("input_ids", Element.INT64, (BATCH, SOURCE))
    mask = graph.input("attention_mask", Element.INT64, (BATCH, SOURCE))
    values = graph.embedding(ids, shape.embedding)
    if shape.front is not None:
        values, mask = embedded(graph, values, mask, shape.front)
    lengths = graph.op("Shape", mask)
    keys = _range(graph, graph.number(0, Element.INT64), _length(graph, mask, 1))
    bias = graph.op("Add", _bias(graph, shape, "encoder", keys, keys), additive_mask(graph, mask))
    rows = _as_rows(graph, values, shape.hidden)
    for i in range(shape.layers):
        block = f"encoder.block.{i}.layer"
        inner = _norm(graph, shape, rows, f"{block}.0.layer_norm")
        inner = _self_attention(graph, shape, f"{block}.0.SelfAttention", inner, lengths, bias)
        rows = graph.op("Add", rows, inner)
        rows = _feed_forward(graph, shape, f"{block}.1", rows)
    rows = _norm(graph, shape, rows, "encoder.final_layer_norm")
    _by_batch(graph, rows, lengths, shape.hidden, name="last_hidden_state")
    graph.output("last_hidden_state", Element.FLOAT, (BATCH, shape.positions, shape.hidden))


def _decoder(graph: Graph, shape: T5Shape, cache_of: Callable[[Graph, T5Shape], Cache]) -> None:
    ids = graph.input("input_ids", Element.INT64, (BATCH, TARGET))
    mask = graph.input("encoder_attention_mask", Element.INT64, (BATCH, SOURCE))
    graph.output("logits", Element.FLOAT, (BATCH, TARGET, shape.rows))
    cache, zero = cache_of(graph, shape), graph.number(0, Element.INT64)
    if shape.front is not None:
        mask = resized_mask(graph, mask, shape.front)
    lengths = graph.op("Shape", ids)
    before = _length(graph, cache.own[0][0], 2) if cache.own[0] else zero
    total = graph.op("Add", before, _length(graph, ids, 1))
    bias = _bias(graph, shape, "decoder", _range(graph, before, total), _range(graph, zero, total))
    cross_bias = for_queries(graph, additive_mask(graph, mask), graph.op("Shape", ids, start=1))
    rows = _as_rows(graph, graph.embedding(ids, shape.embedding), shape.hidden)
    for i, (own, crossing) in enumerate(zip(cache.own, cache.crossing, strict=True)):
        block, names = f"decoder.block.{i}.layer", t5_cache.present(i, "decoder")
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
    width = shape.heads * shape.head_dim
    given = [_by_batch(graph, graph.linear(rows, f"{place}.{k}.weight"), lengths, width) for k in "qkv"]
    names = (None, *present)
    heads = {"q_num_heads": shape.heads, "kv_num_heads": shape.heads}
    found, *_ = graph.ops("Attention", *given, bias, *past, outputs=names, domain="", scale=1.0, **heads)
    return graph.linear(_as_rows(graph, found, width), f"{place}.o.weight")


def _cross_attention(
    graph: Graph, shape: T5Shape, place: str, rows: str, lengths: str, keys_values: Sequence[str], bias: str
) -> str:
    queries = by_head(graph, shape, graph.linear(rows, f"{place}.q.weight"), lengths)
    found = graph.op("Attention", queries, *keys_values, bias, scale=1.0)
    found = graph.op("Transpose", found, perm=(0, 2, 1, 3))
    return graph.linear(_as_rows(graph, found, shape.heads * shape.head_dim), f"{place}.o.weight")


def _feed_forward(graph: Graph, shape: T5Shape, place: str, rows: str) -> str:
    dense, inner = f"{place}.DenseReluDense", _norm(graph, shape, rows, f"{place}.layer_norm")
    if shape.gated:
        gate = activated(graph, graph.linear(inner, f"{dense}.wi_0.weight"), shape.activation)
        inner = graph.op("Mul", gate, graph.linear(inner, f"{dense}.wi_1.weight"))
    else:
        inner = activated(graph, graph.linear(inner, f"{dense}.wi.weight"), shape.activation)
    return graph.op("Add", rows, graph.linear(inner, f"{dense}.wo.weight"))


def _logits(graph: Graph, shape: T5Shape, rows: str, lengths: str) -> None:
    rows = _norm(graph, shape, rows, "decoder.final_layer_norm")
    if shape.scaled:
        rows = graph.op("Mul", rows, graph.number(shape.hidden**-0.5))
    _by_batch(graph, graph.linear(rows, shape.head), lengths, shape.rows, name="logits")


def _bias(graph: Graph, shape: T5Shape, side: str, queries: str, keys: str) -> str:
    table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    far, causal = shape.max_distance, side == "decoder"
    return relative_bias(graph, table, queries, keys, max_distance=far, causal=causal)


def _norm(graph: Graph, shape: T5Shape, rows: str, place: str) -> str:
    return graph.op("RMSNormalization", rows, graph.weight(f"{place}.weight"), epsilon=shape.epsilon)


def _as_rows(graph: Graph, values: str, width: int) -> str:
    """``(batch, length, …) -> (batch * length, width)``."""
    return graph.op("Reshape", values, graph.integers(-1, width))


def _by_batch(graph: Graph, rows: str, lengths: str, width: int, *, name: str | None = None) -> str:
    """``(batch * length, width) -> (batch, length, width)``; ``lengths`` are batch and length."""
    return graph.op("Reshape", rows, graph.op("Concat", lengths, graph.integers(width), axis=0), name=name)


def _length(graph: Graph, value: str, axis: int) -> str:
    """The length of an axis as a scalar."""
    return graph.op("Squeeze", graph.op("Shape", value, start=axis, end=axis + 1))


def _range(graph: Graph, start: str, stop: str) -> str:
    return graph.op("Range", start, stop, graph.number(1, Element.INT64))
