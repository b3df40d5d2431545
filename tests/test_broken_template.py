"""Chat templates that do not compile: left out or replaced, said in the file, in a note and by run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import vocab_material as material
from llama_material import random_llama

from kconv.converters import to_gguf
from kconv.core.errors import InputError
from kconv.core.gguf_file import read_header
from kconv.flows.generate import generate
from kconv.flows.to_onnx import to_onnx
from kconv.flows.verify import verify
from kconv.vocab.adapters import adapt
from kconv.vocab.broken_template import LEFT_OUT
from kconv.vocab.context import AdapterContext
from kconv.vocab.templates import resolve_template

BROKEN = "{% for message in messages %}\n<|{{ message.role }}|>{{ message.content }}\n{% endfor"
REASON = "line 3"


def with_template(path: Path, template: str, *, own_file: bool) -> Path:
    tokenizer = path / "tokenizer"
    rows = material.llama3_like(tokenizer)
    if own_file:
        (tokenizer / "chat_template.jinja").write_text(template, "utf-8")
    else:
        file = tokenizer / "tokenizer_config.json"
        settings: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.exists() else {}
        file.write_text(json.dumps({**settings, "chat_template": template}), "utf-8")
    return random_llama(path / "model", tokenizer, vocab_size=rows)


def test_it_is_left_out_of_a_gguf(tmp_path: Path) -> None:
    folder, file = with_template(tmp_path, BROKEN, own_file=False), tmp_path / "out.gguf"
    made = to_gguf(folder, file, types=["f32"], verify=False)
    (note,) = [note for note in made.notes if note.name == "broken-template"]
    assert note.warning
    assert REASON in note.message
    metadata = read_header(file).metadata
    assert "tokenizer.chat_template" not in metadata
    assert REASON in str(metadata[LEFT_OUT])
    assert verify(file, against=folder).parts["metadata"].verdict == "passed"
    with pytest.raises(InputError, match=REASON) as raised:
        generate(file, "안녕", tokens=2, greedy=True, threads=1)
    assert raised.value.hint is not None
    assert "--no-chat" in raised.value.hint
    assert generate(file, "안녕", tokens=2, greedy=True, chat=False, threads=1).prompt_ids


def test_one_that_was_asked_for_is_written_instead(tmp_path: Path) -> None:
    folder, file = with_template(tmp_path, BROKEN, own_file=True), tmp_path / "out.gguf"
    to_gguf(folder, file, types=["f32"], verify=False, chat_template="42dot")
    metadata = read_header(file).metadata
    assert metadata["tokenizer.chat_template"] == resolve_template("42dot")
    assert LEFT_OUT not in metadata
    to_gguf(folder, tmp_path / "none.gguf", types=["f32"], verify=False, chat_template="none")
    assert LEFT_OUT not in read_header(tmp_path / "none.gguf").metadata


@pytest.mark.parametrize("own_file", [True, False])
def test_it_is_left_out_of_an_onnx_folder(tmp_path: Path, own_file: bool) -> None:
    folder = with_template(tmp_path, BROKEN, own_file=own_file)
    made = to_onnx(folder, tmp_path / "onnx", type="f32", verify=False)
    assert [note.warning for note in made.notes if note.name == "broken-template"] == [True]
    assert not (tmp_path / "onnx" / "chat_template.jinja").exists()
    settings = tmp_path / "onnx" / "tokenizer_config.json"
    assert not settings.exists() or "chat_template" not in json.loads(settings.read_text("utf-8"))


def test_the_format_of_a_model_known_by_name_replaces_it() -> None:
    from dataclasses import replace

    from test_adapters import SFT, dot42

    vocab = replace(dot42(), chat_template=BROKEN)
    adapted, notes = adapt(vocab, AdapterContext(rows=50304, names=SFT))
    assert adapted.chat_template == resolve_template("42dot")
    (note,) = [note for note in notes if note.name == "broken-template"]
    assert note.warning
    assert "'42dot' is written instead" in note.message


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('tools only') }}", "{% generation %}a{% endgeneration %}", "plain"]
)
def test_others_stay(template: str) -> None:
    from test_adapters import sentencepiece

    vocab = sentencepiece(special={"unknown": 0, "bos": 1, "eos": 2}, chat_template=template)
    adapted, notes = adapt(vocab, AdapterContext(rows=320))
    assert adapted.chat_template is not None
    assert "broken-template" not in {note.name for note in notes}
