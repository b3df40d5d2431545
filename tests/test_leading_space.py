"""A vocabulary without the tokenizer's leading space: said, written down, and made up for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import vocab_material as material
from llama_material import random_llama

from kconv.converters import to_gguf
from kconv.core.gguf_file import read_header
from kconv.core.vocabulary import TokenType, Vocab
from kconv.vocab.leading_space import with_space_in_template
from kconv.vocab.templates import render_chat

QUESTION = [{"role": "user", "content": "질문"}]


def vocab(template: str | None) -> Vocab:
    types = (TokenType.CONTROL, TokenType.CONTROL, TokenType.NORMAL)
    return Vocab("llama", ("<s>", "</s>", "a"), types, special={"bos": 0, "eos": 1}, chat_template=template)


@pytest.mark.parametrize(
    "template",
    [
        "Q: {{ messages[0]['content'] }}",
        "{#- note -#}\n {%- for m in messages %}{{ m.content }}{%- endfor %}",
    ],
)
def test_chats_begin_with_the_space(template: str) -> None:
    changed, notes = with_space_in_template(vocab(template))
    assert notes == ()
    assert changed.chat_template is not None
    assert render_chat(changed.chat_template, QUESTION) == " " + render_chat(template, QUESTION)


def test_a_chat_that_begins_with_a_special_token_is_left_alone() -> None:
    given = vocab("{{ bos_token }}{{ messages[0]['content'] }}")
    changed, notes = with_space_in_template(given)
    assert changed == given
    assert [(note.name, note.warning) for note in notes] == [("leading-space-chat", True)]


def test_no_template_stays_none() -> None:
    assert with_space_in_template(vocab(None)) == (vocab(None), ())


def test_file_and_manifest_say_it(tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    rows = material.eagle_like(tokenizer, metaspace="first")
    folder = random_llama(tmp_path / "model", tokenizer, vocab_size=rows)
    conversion = to_gguf(folder, tmp_path / "out.gguf", types=["q8_0"], verify=False)
    assert conversion.parity.verdict == "leading-space"
    assert read_header(tmp_path / "out.gguf").metadata["kconv.leading_space"] is True
    manifest = json.loads(conversion.outputs[0].manifest.read_text(encoding="utf-8"))
    assert manifest["proof"]["tokens"]["verdict"] == "leading-space"
    assert "leading-space" in [note["name"] for note in manifest["notes"]]
