"""BERT: klue/bert-base, KoSimCSE, KR-SBERT and everything else of that class, for embeddings.

Keys and tensors as llama.cpp reads them in src/models/bert.cpp.
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
from ..settings import Settings


def _facts(settings: Settings) -> EncoderFacts:
    return read_encoder(settings, epsilon=1e-12, types=2)


BERT = Family(
    name="bert",
    title="BERT (embeddings)",
    models=("klue/bert-base, KoSimCSE-bert, KR-SBERT, multilingual BERT (cased)",),
    hf_classes=("BertModel", "BertForMaskedLM", "BertForPreTraining"),
    arch="bert",
    facts=_facts,
    flags=no_flags,
    keys=encoder_keys,
    rows=encoder_rows(),
    limits={"llama.cpp": limits_of_llama_cpp, "ONNX": limits_of_onnx},
    reference=InTransformers("BertModel", arguments={"add_pooling_layer": False}),
    graphs=one_graph(describe_encoder),
    dropped=DROPPED,
    remarks={"llama.cpp": type_remarks},
    from_files=pooling_keys,
    gelu=True,
    encoder_only=True,
)
