"""to-onnx --drop-extra-tokens: tokens added without a row are in no file of the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_added_tokens import EXTRA, with_added
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from kconv.core.errors import VocabError
from kconv.flows.to_onnx import to_onnx
from kconv.flows.verify import verify


def test_they_are_named_with_the_way_out(tmp_path: Path) -> None:
    folder = with_added(tmp_path, EXTRA, resized=False)
    with pytest.raises(VocabError, match=r"'<PAD>', '<\|tool\|>'") as raised:
        to_onnx(folder, tmp_path / "onnx", type="f32", verify=False)
    assert raised.value.hint is not None
    assert "--drop-extra-tokens" in raised.value.hint
    assert not (tmp_path / "onnx").exists()


def test_no_file_of_the_folder_has_them(tmp_path: Path) -> None:
    folder = with_added(tmp_path, EXTRA, resized=False)
    rows = json.loads((folder / "config.json").read_text("utf-8"))["vocab_size"]
    ids = {text: rows + at for at, text in enumerate(EXTRA)}
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    settings = {
        "added_tokens_decoder": {str(index): {"content": text, **flags} for text, index in ids.items()},
        "additional_special_tokens": [EXTRA[1]],
        "pad_token": EXTRA[0],
        "model_max_length": 64,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": EXTRA[0]}}), "utf-8")
    (folder / "added_tokens.json").write_text(json.dumps(ids), "utf-8")
    made = to_onnx(folder, tmp_path / "onnx", type="f32", drop_extra_tokens=True)
    (note,) = [note for note in made.notes if note.name == "extra-tokens"]
    assert note.warning
    assert all(text in note.message for text in EXTRA)
    for file in (tmp_path / "onnx").glob("*.json"):
        if file.name != "kconv.manifest.json":
            assert not any(text in file.read_text("utf-8") for text in EXTRA), file.name
    assert not (tmp_path / "onnx" / "added_tokens.json").exists()
    assert Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json")).get_vocab_size() <= rows
    read = AutoTokenizer.from_pretrained(str(tmp_path / "onnx"))
    assert max(read(" ".join(EXTRA))["input_ids"]) < rows
    assert read.model_max_length == 64
    assert made.proof is not None
    assert made.proof.parts["tokens"].verdict == "passed"
    assert verify(tmp_path / "onnx", against=folder).parts["tokens"].verdict == "passed"


def test_settings_that_named_only_these_do_not_come_back_with_a_chat_template(tmp_path: Path) -> None:
    folder = with_added(tmp_path, EXTRA, resized=False)
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": EXTRA[0]}), "utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", "utf-8")
    to_onnx(folder, tmp_path / "onnx", type="f32", drop_extra_tokens=True, verify=False)
    settings = json.loads((tmp_path / "onnx" / "tokenizer_config.json").read_text("utf-8"))
    assert settings == {"chat_template": "{{ messages[0]['content'] }}"}
