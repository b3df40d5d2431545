"""Mistral's real tokenizer: SentencePiece, alone and with words added as in SOLAR and EEVE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from packages_material import MISTRAL_COMMON, file_of
from vocab_material import checkpoint, model

from kconv.converters import to_gguf
from kconv.converters.samples.llamas import write_kanana
from kconv.vocab.selection import select_vocab

DATA = "mistral_common/data"
CHATML = ("<|im_start|>", "<|im_end|>")
WORDS = ("안녕하세요", "대한민국", "▁그리고")
ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.fixture(scope="module")
def sentencepiece_model() -> Path:
    return file_of(MISTRAL_COMMON, f"{DATA}/tokenizer.model.v1")


def spm_folder(folder: Path, model_file: Path, *, added: tuple[str, ...] = (), fast: bool = False) -> int:
    """The tokenizer of a Mistral fine-tune, with words added behind it; how many tokens it has."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(model_file, folder / "tokenizer.model")
    described: dict[str, Any] = {
        str(number): {"content": text, "special": True, "normalized": False}
        for number, text in enumerate(("<unk>", "<s>", "</s>"))
    }
    for number, text in enumerate(added, start=32000):
        described[str(number)] = {"content": text, "special": text in CHATML, "normalized": False}
    config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "legacy": True, **ROLES}
    config |= {"added_tokens_decoder": described}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    if fast:
        _write_as_transformers_4(folder)
    return 32000 + len(added)


def _write_as_transformers_4(folder: Path) -> None:
    """tokenizer.json as version 4 made it of such a model, with which SOLAR and EEVE were published."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer.model").unlink()
    made = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    made["pre_tokenizer"] = None
    steps = [{"type": "Prepend", "prepend": "▁"}]
    steps += [{"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    made["normalizer"] = {"type": "Sequence", "normalizers": steps}
    made["model"]["unk_token"] = "<unk>"
    (folder / "tokenizer.json").write_text(json.dumps(made), "utf-8")


@pytest.mark.parametrize(
    ("added", "fast"),
    [((), False), (CHATML, False), ((*CHATML, *WORDS), False), ((*CHATML, *WORDS), True)],
    ids=["plain", "ChatML", "words", "words, tokenizer.json"],
)
def test_sentencepiece_with_added_words(
    added: tuple[str, ...], fast: bool, sentencepiece_model: Path, tmp_path: Path
) -> None:
    rows = spm_folder(tmp_path, sentencepiece_model, added=added, fast=fast)
    found, parity = select_vocab(model(rows + 6), checkpoint(tmp_path, model_type="llama"))
    assert parity.verdict == "exact"
    assert found.vocab is not None
    assert found.vocab.size == rows + 6


def test_a_model_with_them_is_proven(sentencepiece_model: Path, tmp_path: Path) -> None:
    """SOLAR's and EEVE's way from the folder to a proven file, with two layers."""
    rows = spm_folder(tmp_path / "tokens", sentencepiece_model, added=(*CHATML, *WORDS))
    small = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 128}
    small |= {"num_hidden_layers": 2, "vocab_size": rows, "bos_token_id": 1, "eos_token_id": 2}
    folder = write_kanana(tmp_path / "model", **small, pad_token_id=2)
    for name in ("tokenizer.json", "special_tokens_map.json", "generation_config.json"):
        (folder / name).unlink()
    for path in (tmp_path / "tokens").iterdir():
        shutil.copy(path, folder)
    (made,) = to_gguf(folder, tmp_path / "out.gguf").outputs
    assert json.loads(made.manifest.read_text("utf-8"))["proof"]["verdict"] == "passed"
