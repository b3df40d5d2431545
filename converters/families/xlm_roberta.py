"""XLM-RoBERTa: bge-m3-ko, KURE, multilingual-e5: RoBERTa with a SentencePiece vocabulary and fairseq's ids.

llama.cpp runs it in the same graph as BERT, with its tokenizer of unigram models (vocab/fairseq_ids.py).
"""

from __future__ import annotations

from dataclasses import replace

from .roberta import ROBERTA

XLM_ROBERTA = replace(
    ROBERTA,
    name="xlm-roberta",
    title="XLM-RoBERTa (embeddings)",
    models=("bge-m3, BGE-m3-ko, KURE, multilingual-e5, paraphrase-multilingual",),
    hf_classes=("XLMRobertaModel", "XLMRobertaForMaskedLM"),
    reference=replace(ROBERTA.reference, name="XLMRobertaModel"),
    tokenizer_class="XLMRobertaTokenizer",
)
