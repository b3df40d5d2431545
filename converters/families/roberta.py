"""RoBERTa: klue/roberta, KoSimCSE-roberta, ko-sroberta: a BERT whose positions begin behind the padding's.

A token's position is pad_token_id + 1 for the first (transformers, create_position_ids_from_input_ids), so
llama.cpp's table, which it reads from its first row on, lacks the rows before.
"""

from __future__ import annotations

from dataclasses import replace

from ..encoder_facts import EncoderFacts, encoder_rows, read_encoder
from ..family import InTransformers
from ..reshaping import without_first
from ..settings import Settings
from .bert import BERT


def _facts(settings: Settings) -> EncoderFacts:
    """The facts of a RoBERTa or XLM-RoBERTa. Raises CheckpointError."""
    offset = settings.integer("pad_token_id", 1, least=0) + 1
    return read_encoder(settings, epsilon=1e-12, types=2, offset=offset)


ROBERTA = replace(
    BERT,
    name="roberta",
    title="RoBERTa (embeddings)",
    models=("klue/roberta, KoSimCSE-roberta, ko-sroberta-multitask",),
    hf_classes=("RobertaModel", "RobertaForMaskedLM"),
    facts=_facts,
    rows=encoder_rows(without_first("offset")),
    reference=InTransformers(
        "RobertaModel", kept=frozenset({"pad_token_id"}), arguments={"add_pooling_layer": False}
    ),
)
