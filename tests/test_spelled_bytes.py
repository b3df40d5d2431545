"""Unigram vocabularies with byte fallback, as mT5's and UMT5's: exact on text in the vocabulary."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import sentencepiece
from test_t5_unigram import T5, checkpoint, t5_like

from kconv.converters import to_gguf
from kconv.converters.samples.umt5 import write_umt5
from kconv.converters.tokenizer import read_tokenizer
from kconv.core.errors import TokenMismatch
from kconv.flows.verify import verify
from kconv.vocab.selection import select_vocab
from kconv.vocab.spelled_bytes import with_unknown
from kconv.vocab.texts import udhr


@pytest.fixture(scope="module")
def model() -> bytes:
    """Pieces of all the letters of ordinary text, bytes for others."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*udhr("kor"), *udhr("eng")] * 2),
        model_writer=written,
        model_type="unigram",
        vocab_size=1500,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    return written.getvalue()


def umt5(folder: Path, model: bytes) -> Path:
    size = sentencepiece.SentencePieceProcessor(model_proto=model).vocab_size()
    write_umt5(folder, vocab_size=size + 8)
    (folder / "spiece.model").write_bytes(model)
    (folder / "tokenizer_config.json").write_text(json.dumps({**T5, "extra_ids": 0}), "utf-8")
    return folder


def test_it_is_exact_on_text_in_the_vocabulary(model: bytes, tmp_path: Path) -> None:
    folder = umt5(tmp_path / "model", model)
    made = to_gguf(folder, tmp_path / "out.gguf", types=("f32",))
    parity = made.parity
    assert parity.verdict == "in-vocabulary"
    assert 0 < parity.texts - parity.exact < parity.texts
    (note,) = [note for note in made.notes if note.name == "in-vocabulary"]
    assert note.warning
    assert f"{parity.texts - parity.exact} of {parity.texts} texts" in note.message
    assert made.proofs[0].verdict == "warned"
    proof = verify(tmp_path / "out.gguf", against=folder)
    assert proof.parts["tokens"].verdict == "warned"
    assert any(finding.where == "in-vocabulary" for finding in proof.parts["tokens"].findings)


def test_a_vocabulary_that_lacks_ordinary_letters_is_refused(tmp_path: Path) -> None:
    rows = t5_like(tmp_path, byte_fallback=True) + 100
    read = checkpoint(tmp_path, rows)
    from vocab_material import model as without_weights

    with pytest.raises(TokenMismatch, match="encodes as bytes"):
        select_vocab(without_weights(rows), read, read_tokenizer(read))


def test_runs_of_bytes_are_one_unknown_token() -> None:
    octets = frozenset({7, 8})
    assert with_unknown([5, 6], octets, 2) is None
    assert list(with_unknown([7, 8, 5, 7], octets, 2) or ()) == [2, 5, 2]
    assert list(with_unknown([2, 7, 5], octets, 2) or ()) == [2, 5]
