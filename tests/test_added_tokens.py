"""Tokens added without a row, and words among the special tokens: named, left out or written as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vocab_material as material
from llama_material import random_llama

from kconv.converters import to_gguf
from kconv.converters.results import Options
from kconv.core.errors import VocabError
from kconv.core.gguf_file import read_header
from kconv.core.vocabulary import TokenType, is_word
from kconv.flows.plan import plan
from kconv.flows.verify import verify

EXTRA = ("<PAD>", "<|tool|>")
WORDS = ("부가가치세", "income-tax", "Section5A")


def with_added(path: Path, texts: tuple[str, ...], *, resized: bool) -> Path:
    """A Llama whose tokenizer got these special tokens, the embedding resized to them or not."""
    tokenizer = path / "tokenizer"
    rows = material.llama3_like(tokenizer)
    file = tokenizer / "tokenizer.json"
    spec: dict[str, Any] = json.loads(file.read_text("utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] += [
        {"id": rows + at, "content": text, "special": True, **flags} for at, text in enumerate(texts)
    ]
    file.write_text(json.dumps(spec), encoding="utf-8")
    return random_llama(path / "model", tokenizer, vocab_size=rows + (len(texts) if resized else 0))


def test_tokens_without_a_row_are_named(tmp_path: Path) -> None:
    folder = with_added(tmp_path, EXTRA, resized=False)
    with pytest.raises(VocabError, match=r"'<PAD>', '<\|tool\|>'") as raised:
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    assert raised.value.hint is not None
    assert "--drop-extra-tokens" in raised.value.hint


def test_they_are_left_out_on_request(tmp_path: Path) -> None:
    folder = with_added(tmp_path, EXTRA, resized=False)
    (folder / "added_tokens.json").write_text(json.dumps({"<|tool|>": 2400}), encoding="utf-8")
    made = to_gguf(folder, tmp_path / "out.gguf", types=["f32"], verify=False, drop_extra_tokens=True)
    (note,) = [note for note in made.notes if note.name == "extra-tokens"]
    assert note.warning
    assert all(text in note.message for text in EXTRA)
    tokens = read_header(tmp_path / "out.gguf").metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, tuple)
    assert not set(EXTRA) & set(tokens)
    assert made.parity.verdict == "exact"
    proof = verify(tmp_path / "out.gguf", against=folder)
    assert proof.parts["tokens"].verdict == "passed"


def test_a_tokenizer_of_another_model_is_not_trimmed(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    rows = material.dot42_like(tokenizer)
    folder = random_llama(tmp_path / "model", tokenizer, vocab_size=rows - 100)
    with pytest.raises(VocabError, match=r"and \d+ more") as raised:
        to_gguf(folder, tmp_path / "out.gguf", verify=False, drop_extra_tokens=True)
    assert raised.value.hint is not None
    assert "trained with" in raised.value.hint


def test_words_are_warned_of_or_written_as_text(tmp_path: Path) -> None:
    folder = with_added(tmp_path, (*WORDS, "<|tool|>"), resized=True)
    names = {"words_as_text": True}, {}
    for options, kind in zip(names, (TokenType.USER_DEFINED, TokenType.CONTROL), strict=True):
        file = tmp_path / f"{kind}.gguf"
        made = to_gguf(folder, file, types=["f32"], verify=False, **options)
        (note,) = [note for note in made.notes if note.name == "added-words"]
        assert note.warning is not bool(options)
        assert all(word in note.message for word in WORDS)
        assert "<|tool|>" not in note.message
        header = read_header(file).metadata
        tokens, types = (header[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
        assert isinstance(tokens, tuple)
        assert isinstance(types, tuple)
        assert {types[tokens.index(word)] for word in WORDS} == {kind}
        assert types[tokens.index("<|tool|>")] == TokenType.CONTROL
        assert made.parity.verdict == "exact"
        assert verify(file, against=folder).parts["tokens"].verdict == "passed"
    planned = plan(folder, options=Options(types=("f32",), words_as_text=True))
    assert planned.types[0].bytes == (tmp_path / f"{TokenType.USER_DEFINED}.gguf").stat().st_size


@pytest.mark.parametrize("text", ["<s>", "[PAD]", "<|im_end|>", "PAD", "", "###", "</s>", "_<EOT>", "unk"])
def test_marks_are_no_words(text: str) -> None:
    assert not is_word(text)
