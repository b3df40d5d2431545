"""Encoders that write no text, BERT's kind: hidden states, and a vector of each text if the folder says how.

Inputs and outputs have optimum's names, ``sentence_embedding`` sentence-transformers'. Padding may be
anywhere ``attention_mask`` says.
"""

from __future__ import annotations

from ..encoder_facts import PLACES, TABLE, TYPES, EncoderFacts
from ..pooling import Pooling, pooling_of
from .blocks import by_batch, feed_forward, layer_norm, linear
from .flavour import Given
from .graph import Element, Graph
from .masks import additive_mask, for_queries
from .request import GraphRequest

BATCH, LENGTH = "batch_size", "sequence_length"
STATES, EMBEDDING = "last_hidden_state", "sentence_embedding"
_LEAST = 1e-12  # torch.nn.functional.normalize


def describe_encoder(graph: Graph, request: GraphRequest[EncoderFacts]) -> None:
    """The whole model."""
    facts = request.facts
    ids = graph.input("input_ids", Element.INT64, (BATCH, LENGTH))
    mask = graph.input("attention_mask", Element.INT64, (BATCH, LENGTH))
    lengths = graph.op("Shape", ids)
    values = graph.embedding(ids, TABLE)
    if facts.types > 1:
        types = graph.input("token_type_ids", Element.INT64, (BATCH, LENGTH))
        values = graph.op("Add", values, graph.embedding(types, TYPES))
    else:
        values = graph.op("Add", values, graph.weight(TYPES))
    values = graph.op("Add", values, graph.embedding(_places(graph, ids, lengths, facts), PLACES))
    rows = graph.op("Reshape", values, graph.integers(-1, facts.hidden))
    rows = layer_norm(graph, rows, "embeddings.LayerNorm", facts.epsilon)
    allowed = for_queries(graph, additive_mask(graph, mask), graph.op("Shape", ids, start=1))
    for layer in range(facts.layers):
        rows = _layer(graph, facts, f"encoder.layer.{layer}", rows, lengths, allowed)
    whole = by_batch(graph, rows, lengths, facts.hidden, name=STATES)
    graph.output(STATES, Element.FLOAT, (BATCH, LENGTH, facts.hidden))
    pooled(graph, whole, mask, pooling_of(request.checkpoint), facts.hidden)


def pooled(graph: Graph, states: str, mask: str, pooling: Pooling, width: int) -> None:
    """Declare ``sentence_embedding (batch, width)`` of ``states (batch, length, width)``, if it is made."""
    if pooling.way is None:
        return
    name = None if pooling.normalized else EMBEDDING
    if pooling.way == "mean":
        weights = graph.op("Unsqueeze", graph.cast(mask, Element.FLOAT), graph.integers(-1))
        total = graph.op("ReduceSum", graph.op("Mul", states, weights), graph.integers(1), keepdims=0)
        counted = graph.op("ReduceSum", weights, graph.integers(1), keepdims=0)
        made = graph.op("Div", total, graph.op("Max", counted, graph.number(1e-9)), name=name)
    else:
        made = graph.op("GatherND", states, _chosen(graph, mask, pooling), batch_dims=1, name=name)
    if pooling.normalized:
        length = graph.op("ReduceL2", made, graph.integers(1), keepdims=1)
        graph.op("Div", made, graph.op("Max", length, graph.number(_LEAST)), name=EMBEDDING)
    graph.output(EMBEDDING, Element.FLOAT, (BATCH, width))


def _chosen(graph: Graph, mask: str, pooling: Pooling) -> str:
    """The place ``(batch, 1)`` of the first token of each text, or of the last."""
    last = int(pooling.way == "last")
    return graph.op("ArgMax", mask, axis=1, keepdims=1, select_last_index=last)


def _places(graph: Graph, ids: str, lengths: str, facts: EncoderFacts) -> str:
    """The row of each token's position: BERT counts columns, RoBERTa the tokens that are not padding."""
    one = graph.number(1, Element.INT64)
    if facts.offset:
        padding = graph.number(facts.offset - 1, Element.INT64)
        real = graph.cast(graph.op("Not", graph.op("Equal", ids, padding)), Element.INT64)
        counted = graph.op("CumSum", real, one)
        return graph.op("Add", graph.op("Mul", counted, real), padding)
    length = graph.op("Squeeze", graph.op("Shape", ids, start=1, end=2))
    columns = graph.op("Range", graph.number(0, Element.INT64), length, one)
    return graph.op("Unsqueeze", columns, graph.integers(0))


def _layer(graph: Graph, facts: EncoderFacts, place: str, rows: str, lengths: str, mask: str) -> str:
    query, key, value = (
        by_batch(graph, linear(graph, rows, f"{place}.attention.self.{each}"), lengths, facts.hidden)
        for each in ("query", "key", "value")
    )
    seen = graph.flavour.attended_all(graph, Given(query, key, value), mask, facts.heads)
    seen = graph.op("Reshape", seen, graph.integers(-1, facts.hidden))
    seen = linear(graph, seen, f"{place}.attention.output.dense")
    rows = graph.op("Add", rows, seen)
    rows = layer_norm(graph, rows, f"{place}.attention.output.LayerNorm", facts.epsilon)
    up, down = f"{place}.intermediate.dense", f"{place}.output.dense"
    rows = graph.op("Add", rows, feed_forward(graph, rows, up, down, facts.activation))
    return layer_norm(graph, rows, f"{place}.output.LayerNorm", facts.epsilon)
