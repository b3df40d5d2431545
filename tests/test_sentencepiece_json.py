"""A tokenizer.json made of a SentencePiece model gives SentencePiece's ids and texts, or is not made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from vocab_material import checkpoint, model, sentencepiece_like

from kconv.converters.onnx.folder import LAYOUTS, SideFiles, collect_side_files
from kconv.converters.tokenizer import read_tokenizer
from kconv.vocab.exam import exam
from kconv.vocab.sentencepiece_json import sentencepiece_tokenizer_json
from kconv.vocab.sources import read_source
from kconv.vocab.tokenizer import Source

UNIGRAM: dict[str, Any] = {"model_type": "unigram"}
NO_BYTES = {"byte_fallback": False}
# By name: how SentencePiece is trained, and changes to tokenizer_config.json.
KINDS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama": ({}, {}),
    "space at the very start": ({}, {"legacy": False}),
    "no space": ({"add_dummy_prefix": False}, {"add_eos_token": True}),
    "surplus spaces": ({"remove_extra_whitespaces": True}, {}),
    "defined by users": ({"user_defined_symbols": ["<human>:", "한국어", "##"]}, {}),
    "t5": ({**UNIGRAM, **NO_BYTES, "remove_extra_whitespaces": True}, {"tokenizer_class": "T5Tokenizer"}),
    "unigram with bytes": (UNIGRAM, {"legacy": False}),
}


def beside(folder: Path, source: Source, model_type: str = "llama") -> SideFiles:
    names = {"llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration"}
    config = {"architectures": [names[model_type]], "model_type": model_type}
    read = checkpoint(folder, **config)
    return collect_side_files(read, read_source(read), model(source.size), LAYOUTS["optimum"], {})


@pytest.mark.parametrize("name", KINDS)
def test_ids_and_texts_are_those_of_sentencepiece(name: str, tmp_path: Path) -> None:
    import sentencepiece
    from tokenizers import Tokenizer

    options, changes = KINDS[name]
    rows = sentencepiece_like(tmp_path, **options)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, **changes}))
    source = read_source(checkpoint(tmp_path))
    side_files = beside(tmp_path, source)
    assert "made-tokenizer" in [note.name for note in side_files.notes]
    copy = Tokenizer.from_buffer(side_files.contents["tokenizer.json"])
    original = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    # what spells special tokens is cut by transformers' code, not by SentencePiece
    texts = [text for text in exam(source).texts if not any(each.text in text for each in source.added)]
    assert len(texts) > 2000
    right, good = original.encode(texts), source.equally_good
    encodings = copy.encode_batch(texts, add_special_tokens=False)
    for text, encoding, ids in zip(texts, encodings, right, strict=True):
        assert encoding.ids == ids or (good is not None and good(encoding.ids, ids)), text
    if source.prefix is None or source.prefix.each:
        for text, ids in zip(texts[:500], right[:500], strict=True):
            if 0 not in ids and all(each < rows for each in ids):
                assert copy.decode(ids) == original.decode(ids), text


def test_special_tokens_are_found_and_added(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    sentencepiece_like(tmp_path)
    copy = Tokenizer.from_str(sentencepiece_tokenizer_json(read_source(checkpoint(tmp_path))))
    assert copy.encode("가").ids[0] == 1
    assert copy.encode("가</s>나").ids.count(2) == 1
    assert [token.special for token in copy.get_added_tokens_decoder().values()] == [True] * 3


def test_one_that_would_differ_is_not_made(tmp_path: Path) -> None:
    """Compiled normalization of letters with several marks is what the tokenizers library does otherwise."""
    sentencepiece_like(tmp_path, normalization_rule_name="nmt_nfkc")
    side_files = beside(tmp_path, read_source(checkpoint(tmp_path)))
    assert "tokenizer.json" not in side_files.contents
    assert side_files.contents["tokenizer.model"] == (tmp_path / "tokenizer.model").read_bytes()
    (note,) = (note for note in side_files.notes if note.name == "no-tokenizer-json")
    assert note.warning
    assert "other ids for" in note.message


@pytest.mark.parametrize(
    ("name", "model_type"), [("kortok_sp-32k", "llama"), ("ke-t5", "t5"), ("hf_stories260K", "llama")]
)
def test_published_models(name: str, model_type: str, real: Path, tmp_path: Path) -> None:
    if name.startswith("hf_"):
        shutil.copy(real / name / "tokenizer.model", tmp_path)
    else:
        shutil.copy(real / "tokenizers" / f"{name}.model", tmp_path / "spiece.model")
    source = read_tokenizer(checkpoint(tmp_path, model_type=model_type))
    assert "tokenizer.json" in beside(tmp_path, source, model_type).contents
