"""Chat templates that want a system text, or content in parts, lie elsewhere, or are no text at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vocab_material as material
from vocab_material import checkpoint, model

from kconv.core.model import Note
from kconv.core.vocabulary import Vocab
from kconv.vocab.selection import select_vocab

TURN = "<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ CONTENT }}<|eot_id|>"
CHAT = "{% for m in messages %}" + TURN.replace("CONTENT", "m['content']") + "{% endfor %}"
NEEDS_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ raise_exception('system first') }}{% endif %}" + CHAT
)
IN_PARTS = CHAT.replace("m['content']", "m['content'][0]['text']")
FAILS = "{{ raise_exception('no system, no user') }}" + CHAT


def read(folder: Path, template: Any, file: str = "tokenizer_config.json") -> tuple[Vocab, dict[str, Note]]:
    rows = material.llama3_like(folder)
    path = folder / file
    settings = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps({**settings, "chat_template": template}), "utf-8")
    made, _ = select_vocab(model(rows), checkpoint(folder, model_type="llama"))
    assert made.vocab is not None
    return made.vocab, {note.name: note for note in made.notes}


def end(vocab: Vocab) -> str | None:
    return vocab.tokens[vocab.special["eot"]] if "eot" in vocab.special else None


@pytest.mark.parametrize("template", [NEEDS_SYSTEM, IN_PARTS], ids=["system first", "in parts"])
def test_the_end_of_turn_is_found_all_the_same(template: str, tmp_path: Path) -> None:
    vocab, notes = read(tmp_path, template)
    assert (end(vocab), vocab.chat_template) == ("<|eot_id|>", template)
    assert not notes["end-of-turn"].warning


def test_one_that_always_fails_is_said_with_its_own_words(tmp_path: Path) -> None:
    _, notes = read(tmp_path, FAILS)
    assert notes["end-of-turn"].warning
    assert "no system, no user" in notes["end-of-turn"].message


def test_one_beside_the_settings_of_a_processor(tmp_path: Path) -> None:
    vocab, _ = read(tmp_path, CHAT, file="chat_template.json")
    assert (end(vocab), vocab.chat_template) == ("<|eot_id|>", CHAT)


@pytest.mark.parametrize("template", [3, ["a"], {"default": 1}, [{"name": "default"}]])
def test_what_is_no_template_is_left_out(template: Any, tmp_path: Path) -> None:
    vocab, notes = read(tmp_path, template)
    assert vocab.chat_template is None
    assert notes["broken-template"].warning
    assert "--chat-template" in notes["broken-template"].message
