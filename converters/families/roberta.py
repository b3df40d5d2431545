"""RoBERTa: klue/roberta, KoSimCSE-roberta, ko-sroberta: a BERT whose positions begin behind the padding's.

A token's position is pad_token_id + 1 for the first (transformers, create_position_ids_from_input_ids), so
llama.cpp's table, which it reads from its first row on, lacks the rows before.
"""

from __future__ import annotations

from ..encoder_facts import (
    DROPPED,
    EncoderFacts,
    encoder_keys,
    encoder_rows,
    limits_of_llama_cpp,
    limits_of_onnx,
    no_flags,
    pooling_keys,
    read_encoder,
    type_remarks,
)
from ..family import Family, InTransformers
from ..onnx.encoder import describe_encoder
from ..onnx.request import one_graph
from ..reshaping import without_first
from ..settings import Settings

ROWS = encoder_rows(without_first("offset"))


def read_facts(settings: Settings) -> EncoderFacts:
    """The facts of a RoBERTa or XLM-RoBERTa. Raises CheckpointError."""
    offset = settings.integer("pad_token_id", 1, least=0) + 1
    return read_encoder(settings, epsilon=1e-12, types=2, offset=offset)


ROBERTA = Family(
    name="roberta",
    title="RoBERTa (embeddings)",
    models=("klue/roberta, KoSimCSE-roberta, ko-sroberta-multitask",),
    hf_classes=("RobertaModel", "RobertaForMaskedLM"),
    arch="bert",
    facts=read_facts,
    flags=no_flags,
    keys=encoder_keys,
    rows=ROWS,
    limits={"llama.cpp": limits_of_llama_cpp, "ONNX": limits_of_onnx},
    reference=InTransformers(
        "RobertaModel", kept=frozenset({"pad_token_id"}), arguments={"add_pooling_layer": False}
    ),
    graphs=one_graph(describe_encoder),
    dropped=DROPPED,
    remarks={"llama.cpp": type_remarks},
    from_files=pooling_keys,
    gelu=True,
    encoder_only=True,
)
