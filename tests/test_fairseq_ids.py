"""Tokenizers with fairseq's ids (XGLM, XLM-RoBERTa): as SentencePiece model, as tokenizer.json, as both."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import vocab_material as material
from transformers import XGLMTokenizer, XLMRobertaTokenizer

from kconv.converters.samples.tokenizer_files import unigram_sentencepiece
from kconv.core.errors import TokenMismatch, VocabError
from kconv.core.vocabulary import TokenType
from kconv.vocab.exam import exam
from kconv.vocab.plain_text import is_plain
from kconv.vocab.selection import select_vocab
from kconv.vocab.sentencepiece_proto import parse_model, unigram_model
from kconv.vocab.sources import read_source
from kconv.vocab.tokenizer import Source, added_pattern

MODEL = "sentencepiece.bpe.model"
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>"]
WORDS = {"XGLMTokenizer": [f"<madeupword{n}>" for n in range(7)], "XLMRobertaTokenizer": ["<mask>"]}
CLASSES = {"XGLMTokenizer": XGLMTokenizer, "XLMRobertaTokenizer": XLMRobertaTokenizer}


@pytest.fixture(scope="module")
def trained() -> bytes:
    return unigram_sentencepiece(900)


def as_transformers_4_made_it(model: bytes, kind: str) -> dict[str, Any]:
    """The tokenizer.json of SpmConverter's children (transformers 4, convert_slow_tokenizer.py)."""
    proto = parse_model(model, Path(MODEL))
    pieces = [[piece.text, piece.score] for piece in proto.pieces[3:]]
    vocab = [*([text, 0.0] for text in SPECIALS), *pieces, *([text, 0.0] for text in WORDS[kind])]
    charsmap = base64.b64encode(proto.charsmap).decode()
    normalizer: dict[str, Any] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    meta = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}
    splits: dict[str, Any] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, meta]}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    before, after = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("<s>", "</s>"))
    around = [before, text, after]
    if kind == "XGLMTokenizer":
        replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        normalizer = {"type": "Sequence", "normalizers": [normalizer, replace]}
        splits, around = meta, [after, text]
    specials = {
        token: {"id": token, "ids": [at], "tokens": [token]} for token, at in (("<s>", 0), ("</s>", 2))
    }
    flags = {"single_word": False, "rstrip": False, "normalized": False, "special": True}
    added = [*SPECIALS, *WORDS[kind]]
    index = {entry[0]: at for at, entry in enumerate(vocab)}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": index[each], "content": each, "lstrip": each == "<mask>", **flags} for each in added
        ],
        "normalizer": normalizer,
        "pre_tokenizer": splits,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": around,
            "pair": [*around, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": specials,
        },
        "decoder": meta,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": vocab, "byte_fallback": False},
    }


def written(folder: Path, kind: str, files: str, model: bytes) -> Path:
    folder.mkdir()
    roles = {"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"}
    roles |= {"unk_token": "<unk>", "pad_token": "<pad>"}
    if kind == "XLMRobertaTokenizer":
        roles["mask_token"] = "<mask>"
    settings = {"tokenizer_class": kind, **roles}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    if "model" in files:
        (folder / MODEL).write_bytes(model)
    if "json" in files:
        spec = as_transformers_4_made_it(model, kind)
        (folder / "tokenizer.json").write_text(json.dumps(spec, ensure_ascii=False), "utf-8")
    return folder


def read(folder: Path) -> Source:
    return read_source(material.checkpoint(folder, bos_token_id=0, eos_token_id=2, pad_token_id=1))


def is_plain_between(text: str, source: Source) -> bool:
    pattern = added_pattern(source.added, True)
    return all(map(is_plain, pattern.split(text) if pattern else [text]))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    ("files", "verdict"), [("model", "exact"), ("model and json", "exact"), ("json", "sentencepiece")]
)
def test_llama_cpp_reads_them(kind: str, files: str, verdict: str, trained: bytes, tmp_path: Path) -> None:
    folder = written(tmp_path / "folder", kind, files, trained)
    source = read(folder)
    settled, parity = select_vocab(material.model(source.size), material.checkpoint(folder), source)
    vocab = settled.vocab
    assert vocab is not None
    assert parity.verdict == verdict
    assert parity.candidate == "unigram, surplus spaces removed"
    assert vocab.tokens[:4] == tuple(SPECIALS)
    assert vocab.tokens[-len(WORDS[kind]) :] == tuple(WORDS[kind])
    assert vocab.types[3] is TokenType.UNKNOWN
    assert (vocab.special["eos"], vocab.special["padding"], vocab.special["unknown"]) == (2, 1, 3)
    first, after = (2, False) if kind == "XGLMTokenizer" else (0, True)
    assert (vocab.special["bos"], vocab.add_bos, vocab.add_eos) == (first, True, after)
    notes = {note.name: note.warning for note in settled.notes}
    assert notes.get("sentencepiece") is (True if files == "json" else None)
    assert notes.get("tokenizer-json") is (False if files == "model and json" else None)
    if files == "model and json":
        assert 0 < parity.departing < parity.texts // 2
        assert parity.to_json()["tokenizer_json_departs"] == parity.departing


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_reads_plain_text_in_the_same_way(kind: str, trained: bytes, tmp_path: Path) -> None:
    """Its class makes a tokenizer of its own of the file; SentencePiece's ids are those on all plain text."""
    folder = written(tmp_path / "folder", kind, "model and json", trained)
    source = read(folder)
    questions = exam(source)
    theirs = CLASSES[kind].from_pretrained(str(folder))(list(questions.texts))["input_ids"]
    before, after = ([2], []) if kind == "XGLMTokenizer" else ([0], [2])
    plain = [at for at, text in enumerate(questions.texts) if is_plain_between(text, source)]
    assert len(plain) > 1000
    same = source.equally_good
    assert same is not None
    for at in plain:
        ids, inner = theirs[at], list(questions.parsed[at])
        assert ids[: len(before)] == before
        assert ids[len(ids) - len(after) :] == after
        got = ids[len(before) : len(ids) - len(after)]
        assert got == inner or same(got, inner), questions.texts[at]


def test_a_file_that_departs_in_plain_text_is_refused(trained: bytes, tmp_path: Path) -> None:
    """Case folding is no matter of marks or spaces."""
    folder = written(tmp_path / "folder", "XLMRobertaTokenizer", "json", trained)
    file = folder / "tokenizer.json"
    spec = json.loads(file.read_text("utf-8"))
    spec["normalizer"] = {"type": "Sequence", "normalizers": [spec["normalizer"], {"type": "Lowercase"}]}
    file.write_text(json.dumps(spec), "utf-8")
    source = read(folder)
    with pytest.raises(TokenMismatch):
        select_vocab(material.model(source.size), material.checkpoint(folder), source)


def test_another_model_beside_the_file_is_not_taken(trained: bytes, tmp_path: Path) -> None:
    """The tokens are those of tokenizer.json, whatever lies beside it."""
    folder = written(tmp_path / "folder", "XGLMTokenizer", "json", trained)
    proto = parse_model(trained, Path(MODEL))
    other = unigram_model(proto.pieces[:-1], proto.charsmap, add_dummy_prefix=True)
    (folder / MODEL).write_bytes(other)
    source = read(folder)
    assert source.description.files[0] == "tokenizer.json"
    assert source.original is not None


def test_a_model_with_other_first_pieces_is_refused(tmp_path: Path, trained: bytes) -> None:
    proto = parse_model(trained, Path(MODEL))
    shuffled = unigram_model((*proto.pieces[3:6], *proto.pieces[:3]), proto.charsmap, add_dummy_prefix=True)
    folder = written(tmp_path / "folder", "XLMRobertaTokenizer", "model", shuffled)
    with pytest.raises(VocabError, match=r"first pieces of .* are not"):
        read(folder)


def test_what_is_written_is_read_again(trained: bytes) -> None:
    proto = parse_model(trained, Path(MODEL))
    again = parse_model(unigram_model(proto.pieces, proto.charsmap, add_dummy_prefix=True), Path(MODEL))
    assert (again.pieces, again.charsmap, again.algorithm) == (proto.pieces, proto.charsmap, 1)
    library = sentencepiece.SentencePieceProcessor(
        model_proto=unigram_model(proto.pieces, proto.charsmap, add_dummy_prefix=True)
    )
    text = "안녕하세요. 만나서  반갑습니다!"
    assert library.encode(text) == sentencepiece.SentencePieceProcessor(model_proto=trained).encode(text)
