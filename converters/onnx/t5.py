"""T5 and its relatives as three graphs: encoder, decoder, and decoder with a cache.

They are split and named as optimum does it, so that its runners load them; a weight lies once in the external
data they share. KEByT5, ByT5, T5 v1.1, Flan-T5 and T5 v1.0 (not gated, its head the embedding, scaled) differ
in a few words of ``T5Shape`` only. A GBST-KEByT5 has its front end at the encoder's beginning and runs like
any other T5: its decoders are given the mask of the bytes and resize it themselves.

What flows between the layers is float32, which T5's range asks for. Vectors, relative biases and the GBST
front end are to be stored as F32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...core.checkpoint import Checkpoint
from ...core.tensor import Array
from ...quant.formats import Format
from ..architectures import recipe_for
from ..architectures.t5 import EMBEDDINGS, HEAD, embedding_name, feed_forward, scales, sizes
from ..gbst.settings import EMBEDDING, GbstSettings, read_settings
from ..settings import Settings
from ..transforms import same_weights
from .gbst import embedded, resized_mask
from .graph import Element, Graph, Size
from .masks import additive_mask, for_queries, least_float

ENCODER, DECODER, DECODER_WITH_PAST = (
    "encoder_model.onnx",
    "decoder_model.onnx",
    "decoder_with_past_model.onnx",
)
_BATCH, _SOURCE, _POSITIONS = "batch_size", "encoder_sequence_length", "encoder_positions"
_TARGET, _PAST, _TOTAL = "decoder_sequence_length", "past_decoder_sequence_length", "total_sequence_length"


@dataclass(frozen=True)
class T5Shape:
    """What a description needs to know of a T5.

    ``embedding`` and ``head`` are names of tensors, one name where the head is the embedding. ``scaled`` says
    that what enters the head is multiplied by hidden^-0.5, ``front`` are the settings of a GBST front end.
    """

    layers: int
    decoder_layers: int
    hidden: int
    heads: int
    head_dim: int
    rows: int
    buckets: int
    max_distance: int
    epsilon: float
    gated: bool
    embedding: str
    head: str
    scaled: bool
    front: GbstSettings | None

    @property
    def positions(self) -> str:
        """The name of the length of what the encoder returns."""
        return _SOURCE if self.front is None else _POSITIONS


def t5_graphs(
    checkpoint: Checkpoint, formats: Mapping[str, Format], accuracy_level: int = 0
) -> dict[str, Graph]:
    """The graphs of a checkpoint that fits its recipe (T5, MT5 or GBSWT5), by their files' names.

    ``formats`` and ``accuracy_level`` are as of ``Graph``. Raises what the recipe raises for settings
    that make no sense.
    """
    shape = read_shape(checkpoint)
    files = (ENCODER, DECODER, DECODER_WITH_PAST)
    held = checkpoint.tensors
    graphs = {file: Graph(file.partition(".")[0], held, formats, accuracy_level) for file in files}
    _encoder(graphs[ENCODER], shape)
    _decoder(graphs[DECODER], shape, cached=False)
    _decoder(graphs[DECODER_WITH_PAST], shape, cached=True)
    return graphs


def read_shape(checkpoint: Checkpoint) -> T5Shape:
    """What config.json and the tensors say."""
    settings, held = Settings(checkpoint.config, "config.json"), checkpoint.tensors
    front = read_settings(settings, held) if recipe_for(checkpoint.config).name == "gbswt5" else None
    embedding = embedding_name(checkpoint) if any(name in held for name in EMBEDDINGS) else EMBEDDING
    own = HEAD in held and not same_weights(held[HEAD], held[embedding])
    words = sizes(settings)
    return T5Shape(
        **{word: words[word] for word in ("layers", "decoder_layers", "hidden", "heads", "head_dim")},
        **{word: words[word] for word in ("rows", "buckets")},
        max_distance=settings.integer("relative_attention_max_distance", 128),
        epsilon=settings.real("layer_norm_epsilon", 1e-6),
        gated=feed_forward(settings) == "gated",
        embedding=embedding,
        head=HEAD if own else embedding,
        scaled=scales(settings),
        front=front,
    )


def _encoder(graph: Graph, shape: T5Shape) -> None:
    ids = graph.input("input_ids", Element.INT64, (_BATCH, _SOURCE))
    mask = graph.input("attention_mask", Element.INT64, (_BATCH, _SOURCE))
    values = graph.embedding(ids, shape.embedding)
    if shape.front is not None:
        values, mask = embedded(graph, values, mask, shape.front)
    lengths = graph.op("Shape", mask)
    keys = _range(graph, graph.number(0, Element.INT64), _length(graph, mask, 1))
    bias = graph.op("Add", _relative_bias(graph, shape, "encoder", keys, keys), additive_mask(graph, mask))
    rows = _as_rows(graph, values, shape.hidden)
    for i in range(shape.layers):
        block = f"encoder.block.{i}.layer"
        inner = _norm(graph, shape, rows, f"{block}.0.layer_norm")
        inner = _self_attention(graph, shape, f"{block}.0.SelfAttention", inner, lengths, bias)
        rows = graph.op("Add", rows, inner)
        rows = _feed_forward(graph, shape, f"{block}.1", rows)
    rows = _norm(graph, shape, rows, "encoder.final_layer_norm")
    _by_batch(graph, rows, lengths, shape.hidden, name="last_hidden_state")
    graph.output("last_hidden_state", Element.FLOAT, (_BATCH, shape.positions, shape.hidden))


def _decoder(graph: Graph, shape: T5Shape, *, cached: bool) -> None:
    """The decoder without a cache makes keys and values of both kinds, that with one those of its own."""
    ids = graph.input("input_ids", Element.INT64, (_BATCH, _TARGET))
    mask = graph.input("encoder_attention_mask", Element.INT64, (_BATCH, _SOURCE))
    _declare_results(graph, shape, cached=cached)
    if cached:
        crossing = [_past(graph, shape, i, "encoder", shape.positions) for i in range(shape.decoder_layers)]
        own = [_past(graph, shape, i, "decoder", _PAST) for i in range(shape.decoder_layers)]
    else:
        crossing = _cross_keys_and_values(graph, shape)
        own = [()] * shape.decoder_layers
    if shape.front is not None:
        mask = resized_mask(graph, mask, shape.front)
    lengths = graph.op("Shape", ids)
    past = _length(graph, own[0][0], 2) if cached else graph.number(0, Element.INT64)
    total = graph.op("Add", past, _length(graph, ids, 1))
    queries, keys = _range(graph, past, total), _range(graph, graph.number(0, Element.INT64), total)
    bias = _relative_bias(graph, shape, "decoder", queries, keys)
    cross_bias = for_queries(graph, additive_mask(graph, mask), graph.op("Shape", ids, start=1))
    rows = _as_rows(graph, graph.embedding(ids, shape.embedding), shape.hidden)
    for i in range(shape.decoder_layers):
        block = f"decoder.block.{i}.layer"
        inner = _norm(graph, shape, rows, f"{block}.0.layer_norm")
        place, present = f"{block}.0.SelfAttention", _names("present", i, "decoder")
        inner = _self_attention(graph, shape, place, inner, lengths, bias, own[i], present)
        rows = graph.op("Add", rows, inner)
        inner = _norm(graph, shape, rows, f"{block}.1.layer_norm")
        place = f"{block}.1.EncDecAttention"
        inner = _cross_attention(graph, shape, place, inner, lengths, crossing[i], cross_bias)
        rows = graph.op("Add", rows, inner)
        rows = _feed_forward(graph, shape, f"{block}.2", rows)
    _logits(graph, shape, rows, lengths)


def _declare_results(graph: Graph, shape: T5Shape, *, cached: bool) -> None:
    graph.output("logits", Element.FLOAT, (_BATCH, _TARGET, shape.rows))
    sides = {"decoder": _TOTAL} if cached else {"decoder": _TARGET, "encoder": shape.positions}
    for i in range(shape.decoder_layers):
        for side, length in sides.items():
            for name in _names("present", i, side):
                graph.output(name, Element.FLOAT, (_BATCH, shape.heads, length, shape.head_dim))


def _past(graph: Graph, shape: T5Shape, layer: int, side: str, length: Size) -> tuple[str, ...]:
    sizes = (_BATCH, shape.heads, length, shape.head_dim)
    return tuple(graph.input(n, Element.FLOAT, sizes) for n in _names("past_key_values", layer, side))


def _names(kind: str, layer: int, side: str) -> tuple[str, str]:
    return f"{kind}.{layer}.{side}.key", f"{kind}.{layer}.{side}.value"


def _cross_keys_and_values(graph: Graph, shape: T5Shape) -> list[tuple[str, ...]]:
    """By layer the keys and values of what the encoder returned: (batch, heads, positions, head_dim)."""
    sizes = (_BATCH, shape.positions, shape.hidden)
    states = graph.input("encoder_hidden_states", Element.FLOAT, sizes)
    lengths, rows = graph.op("Shape", states, end=2), _as_rows(graph, states, shape.hidden)
    made: list[tuple[str, ...]] = []
    for i in range(shape.decoder_layers):
        place, names = f"decoder.block.{i}.layer.1.EncDecAttention", _names("present", i, "encoder")
        for key, name in zip("kv", names, strict=True):
            values = graph.linear(rows, f"{place}.{key}.weight")
            _by_head(graph, shape, values, lengths, name=name)
        made.append(names)
    return made


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
    queries = _by_head(graph, shape, graph.linear(rows, f"{place}.q.weight"), lengths)
    found = graph.op("Attention", queries, *keys_values, bias, scale=1.0)
    found = graph.op("Transpose", found, perm=(0, 2, 1, 3))
    return graph.linear(_as_rows(graph, found, shape.heads * shape.head_dim), f"{place}.o.weight")


def _feed_forward(graph: Graph, shape: T5Shape, place: str, rows: str) -> str:
    dense, inner = f"{place}.DenseReluDense", _norm(graph, shape, rows, f"{place}.layer_norm")
    if shape.gated:
        gate = graph.op("Gelu", graph.linear(inner, f"{dense}.wi_0.weight"), approximate="tanh")
        inner = graph.op("Mul", gate, graph.linear(inner, f"{dense}.wi_1.weight"))
    else:
        inner = graph.op("Relu", graph.linear(inner, f"{dense}.wi.weight"))
    return graph.op("Add", rows, graph.linear(inner, f"{dense}.wo.weight"))


def _logits(graph: Graph, shape: T5Shape, rows: str, lengths: str) -> None:
    rows = _norm(graph, shape, rows, "decoder.final_layer_norm")
    if shape.scaled:
        rows = graph.op("Mul", rows, graph.number(shape.hidden**-0.5))
    _by_batch(graph, graph.linear(rows, shape.head), lengths, shape.rows, name="logits")


def _relative_bias(graph: Graph, shape: T5Shape, side: str, queries: str, keys: str) -> str:
    """``(1, heads, queries, keys)`` from positions; the decoder's keys behind a query get the least float."""
    buckets = relative_buckets(shape.buckets, shape.max_distance, both_ways=side == "encoder")
    table = graph.weight(f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
    by_distance = graph.op("Transpose", graph.op("Gather", table, graph.constant(buckets)), perm=(1, 0))
    rows = graph.op("Unsqueeze", queries, graph.integers(1))
    distances = graph.op("Sub", keys, rows)
    farthest = graph.number(shape.max_distance, Element.INT64)
    near = graph.op("Clip", distances, graph.number(-shape.max_distance, Element.INT64), farthest)
    bias = graph.op("Gather", by_distance, graph.op("Add", near, farthest), axis=1)
    if side == "decoder":
        later = graph.op("Greater", distances, graph.number(0, Element.INT64))
        bias = graph.op("Where", later, least_float(graph), bias)
    return graph.op("Unsqueeze", bias, graph.integers(0))


def relative_buckets(buckets: int, max_distance: int, *, both_ways: bool) -> Array:
    """The bucket of each distance from ``-max_distance`` to ``max_distance`` (key minus query), as int64.

    Half of the buckets are for single distances, the others grow like a logarithm up to ``max_distance``; an
    encoder's are for both directions, a decoder's for what lies before (T5's paper, arXiv 1910.10683,
    section 2.1; float32 as in transformers' modeling_t5.py).
    """
    distances = np.arange(-max_distance, max_distance + 1)
    one_way = buckets // 2 if both_ways else buckets
    away = np.abs(distances) if both_ways else np.maximum(-distances, 0)
    single = one_way // 2
    growth = np.log(np.maximum(away, 1).astype(np.float32) / np.float32(single))
    growth = growth / np.float32(math.log(max_distance / single)) * np.float32(one_way - single)
    far = np.minimum(single + growth.astype(np.int64), one_way - 1)
    found = np.where(away < single, away, far)
    return (found + one_way * (distances > 0) if both_ways else found).astype(np.int64)


def _norm(graph: Graph, shape: T5Shape, rows: str, place: str) -> str:
    return graph.op("RMSNormalization", rows, graph.weight(f"{place}.weight"), epsilon=shape.epsilon)


def _as_rows(graph: Graph, values: str, width: int) -> str:
    """``(batch, length, …) -> (batch * length, width)``."""
    return graph.op("Reshape", values, graph.integers(-1, width))


def _by_batch(graph: Graph, rows: str, lengths: str, width: int, *, name: str | None = None) -> str:
    """``(batch * length, width) -> (batch, length, width)``; ``lengths`` are batch and length."""
    return graph.op("Reshape", rows, graph.op("Concat", lengths, graph.integers(width), axis=0), name=name)


def _by_head(graph: Graph, shape: T5Shape, rows: str, lengths: str, *, name: str | None = None) -> str:
    """``(batch * length, heads * head_dim) -> (batch, heads, length, head_dim)``."""
    split = graph.op("Concat", lengths, graph.integers(shape.heads, shape.head_dim), axis=0)
    return graph.op("Transpose", graph.op("Reshape", rows, split), name=name, perm=(0, 2, 1, 3))


def _length(graph: Graph, value: str, axis: int) -> str:
    """The length of an axis as a scalar."""
    return graph.op("Squeeze", graph.op("Shape", value, start=axis, end=axis + 1))


def _range(graph: Graph, start: str, stop: str) -> str:
    return graph.op("Range", start, stop, graph.number(1, Element.INT64))
