"""Rerankers, classifiers and other models with a head that writes no text: a reason, and what works."""

from __future__ import annotations

import pytest
from test_refusals import SCREEN, rows_of, said


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (("XLMRobertaForSequenceClassification", "xlm-roberta"), ("rerank", "convert_hf_to_gguf")),
        (("BertForSequenceClassification", "bert"), ("llama-server --reranking", "convert_hf_to_gguf")),
        (("ModernBertForSequenceClassification", "modernbert"), ("llama-server --reranking",)),
        (("ElectraForSequenceClassification", "electra"), ("encoders that embed texts",)),
        (("Qwen3ForSequenceClassification", "qwen3"), ("where they write text", "transformers")),
        (("GemmaForSequenceClassification", "gemma"), ("where they write text", "transformers")),
    ],
    ids=lambda value: value[0],
)
def test_what_gives_scores(named: tuple[str, str], words: tuple[str, ...]) -> None:
    text = said(*named)
    assert rows_of(text) <= SCREEN[0]
    for word in (*words, "gives scores", "--task text-classification"):
        assert word in text


@pytest.mark.parametrize(
    ("named", "task"),
    [
        (("RobertaForTokenClassification", "roberta"), "token-classification"),
        (("BertForQuestionAnswering", "bert"), "question-answering"),
        (("LlamaForTokenClassification", "llama"), "token-classification"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_other_heads_are_told_optimums_task(named: tuple[str, str], task: str) -> None:
    assert f"optimum-cli export onnx --task {task}" in said(*named)
