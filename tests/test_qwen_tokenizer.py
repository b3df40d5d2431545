"""Qwen's real tokenizer, rebuilt from its published ranks: llama.cpp gives the same ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from qwen_tokenizer_material import SPECIAL, WORDS, give_qwen_tokenizer, qwen_tokenizer, ranks

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.samples.decoders import write_qwen3
from kconv.converters.samples.qwen_gemma import write_qwen2
from kconv.core.reading import open_checkpoint
from kconv.vocab.selection import select_vocab

IDS = {"vocab_size": 151936, "bos_token_id": 151643, "eos_token_id": 151645, "pad_token_id": 151643}


def test_every_rank_is_an_id_and_every_long_token_a_merge() -> None:
    held = ranks()
    assert sorted(held.values()) == list(range(151643))
    model = qwen_tokenizer()["model"]
    assert len(model["vocab"]) == 151643
    assert len(model["merges"]) == 151643 - 256  # 151,387, as in the published files
    assert len(SPECIAL) + len(WORDS) == 26


@pytest.mark.parametrize("write", [write_qwen2, write_qwen3])
def test_llama_cpp_reads_texts_as_the_tokenizer_does(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoint", hidden_size=64, num_hidden_layers=1, **IDS)
    checkpoint = open_checkpoint(give_qwen_tokenizer(folder, normalizer=None))
    model, parity = select_vocab(build(family_for(checkpoint.config), checkpoint), checkpoint)
    assert model.vocab is not None
    assert (parity.verdict, model.vocab.pre) == ("exact", "qwen2")
    # an ordinary token that llama.cpp would take for the end of a text wherever one spells it
    assert model.vocab.tokens[128247] == "</s>\u0120"
