"""T5's encoders by themselves, as sentence-t5 and text-to-image models have them: llama.cpp's ``t5encoder``.

Rows are those of the whole models' encoders, keys those llama.cpp's own converter writes
(conversion/t5.py, T5EncoderModel; src/models/t5encoder.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ....core.checkpoint import Checkpoint
from ....core.model import MetadataValue
from ...family import AnyFamily, InTransformers, Row
from ...onnx.encoder import LENGTH, pooled
from ...onnx.graph import Graph
from ...onnx.request import GraphRequest, one_graph
from ...pooling import pooling_of
from .facts import T5Facts, limits_of_encoders
from .family import GATED, MT5, T5, UMT5, UNGATED, context_keys
from .graphs import describe_encoder
from .shape import embedding_name, encoder_shape

_DECODERS = frozenset(
    {"decoder_block_count", "decoder_start_token_id", "vocab_size", "attention.head_count_kv"}
)


def _flags(facts: T5Facts, checkpoint: Checkpoint) -> frozenset[str]:
    return frozenset({embedding_name(checkpoint), GATED if facts.gated else UNGATED})


def _keys(facts: T5Facts) -> dict[str, MetadataValue]:
    """Those of llama.cpp's converter, and that tokens see those behind them.

    Without the latter llama_decode, by which llama-server and llama-embedding read, hides them: its texts get
    other embeddings than llama_encode's (src/llama-context.cpp).
    """
    keys = {key: value for key, value in T5.keys(facts).items() if key not in _DECODERS}
    return {**keys, "attention.causal": False}


def _from_files(facts: T5Facts, checkpoint: Checkpoint) -> dict[str, MetadataValue]:
    return {**context_keys(facts, checkpoint), **pooling_of(checkpoint).keys}


def _describe(graph: Graph, request: GraphRequest[T5Facts]) -> None:
    shape = encoder_shape(request.facts, request.flags)
    states, mask = describe_encoder(graph, shape, LENGTH)
    pooled(graph, states, mask, pooling_of(request.checkpoint), request.facts.hidden)


def _by_itself(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The class reads no decoder's settings."""
    return {**config, "is_encoder_decoder": False}


def _is_encoders(row: Row) -> bool:
    return row.target.startswith(("enc.", "token_embd."))


def _encoder_of(family: AnyFamily, models: str) -> AnyFamily:
    """The encoder of a family; a decoder's tensors are left out, as transformers' class does."""
    (name,) = {each.replace("ForConditionalGeneration", "EncoderModel") for each in family.hf_classes[:1]}
    rows = tuple(row for row in family.rows if _is_encoders(row))
    others = {source for row in family.rows if not _is_encoders(row) for source in row.sources}
    return replace(
        family,
        name=f"{family.name}-encoder",
        title=f"{family.title} encoder (embeddings)",
        models=(models,),
        hf_classes=(name,),
        arch="t5encoder",
        flags=_flags,
        keys=_keys,
        rows=rows,
        limits={
            "llama.cpp": lambda facts: limits_of_encoders(facts, "t5encoder"),
            "ONNX": family.limits["ONNX"],
        },
        reference=InTransformers(name, config=_by_itself, kept=frozenset({"is_encoder_decoder"})),
        graphs=one_graph(_describe),
        dropped=tuple(sorted({*family.dropped, *others})),
        notes=lambda facts, flags: (),
        from_files=_from_files,
        encoder_decoder=False,
        encoder_only=True,
        granted=lambda facts: {},
    )


T5_ENCODER = _encoder_of(T5, "sentence-t5, encoders of T5 v1.1 and Flan-T5 alone")
MT5_ENCODER = _encoder_of(MT5, "encoders of mT5 alone")
UMT5_ENCODER = _encoder_of(UMT5, "encoders of UMT5 alone")
