"""Damaged vocabularies are caught, dangerous ones kill only the child, and the error shows the evidence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import vocab_material as material
from signals_material import killing

from kconv.core.errors import ChildDied, TokenMismatch, VocabError
from kconv.core.vocabulary import TokenType, Vocab
from kconv.vocab import exam, parity, selection
from kconv.vocab.candidates import Candidate, candidates
from kconv.vocab.probe import LlamaProbe, ProbeFailure, Request
from kconv.vocab.sources import read_source
from kconv.vocab.tokenizer import Source


def graded(tmp_path: Path, source: Source, vocab: Vocab) -> parity.Parity:
    """What llama.cpp makes of a vocabulary, against the source."""
    path = tmp_path / "candidate.gguf"
    parity.write_vocab_only(path, "llama", vocab)
    with LlamaProbe(path) as child:
        return parity.grade("damaged", child, exam.exam(source), source, parity.declared(vocab))


@pytest.fixture
def llama3(tmp_path: Path) -> tuple[Source, Vocab]:
    material.llama3_like(tmp_path / "llama3")
    source = read_source(material.checkpoint(tmp_path / "llama3"))
    return source, next(iter(candidates(source))).vocab


def _swapped_merges(vocab: Vocab) -> Vocab:
    merges = list(vocab.merges)
    merges[0], merges[-1] = merges[-1], merges[0]
    return replace(vocab, merges=tuple(merges))


def _lost_merge(vocab: Vocab) -> Vocab:
    return replace(vocab, merges=vocab.merges[:-1])


def _swapped_tokens(vocab: Vocab) -> Vocab:
    tokens = list(vocab.tokens)
    tokens[-300], tokens[-301] = tokens[-301], tokens[-300]
    return replace(vocab, tokens=tuple(tokens))


def _special_as_text(vocab: Vocab) -> Vocab:
    types = list(vocab.types)
    types[vocab.tokens.index("<|reserved_special_token_5|>")] = TokenType.NORMAL
    return replace(vocab, types=tuple(types))


def _text_as_special(vocab: Vocab) -> Vocab:
    types = list(vocab.types)
    word = next(at for at, text in enumerate(vocab.tokens) if text.isascii() and text.isalpha() and text[1:])
    types[word] = TokenType.USER_DEFINED
    return replace(vocab, types=tuple(types))


def _wrong_pre(vocab: Vocab) -> Vocab:
    return replace(vocab, pre="gpt-2")


def _nearly_right_pre(vocab: Vocab) -> Vocab:
    return replace(vocab, pre="dbrx")  # the same splits, but merges are never ignored


def _wrong_bos(vocab: Vocab) -> Vocab:
    return replace(vocab, special={**vocab.special, "bos": vocab.special["eos"]})


@pytest.mark.parametrize(
    "damage",
    [
        _swapped_merges,
        _lost_merge,
        _swapped_tokens,
        _special_as_text,
        _text_as_special,
        _wrong_pre,
        _nearly_right_pre,
    ],
)
def test_damage_is_caught(
    tmp_path: Path, llama3: tuple[Source, Vocab], damage: Callable[[Vocab], Vocab]
) -> None:
    source, vocab = llama3
    result = graded(tmp_path, source, damage(vocab))
    assert result.verdict == "mismatch"
    assert result.error is None
    assert 0 < result.exact < result.texts
    assert result.difference is not None
    assert result.difference.expected != result.difference.got


def test_bos_is_measured_as_declared(tmp_path: Path, llama3: tuple[Source, Vocab]) -> None:
    source, vocab = llama3
    path = tmp_path / "candidate.gguf"
    parity.write_vocab_only(path, "llama", vocab)
    wrong = parity.declared(_wrong_bos(vocab))
    with LlamaProbe(path) as child:
        result = parity.grade("wrong bos", child, exam.exam(source), source, wrong)
    assert result.verdict == "mismatch"
    assert result.difference is not None
    assert result.difference.add_special


def test_an_aborting_vocabulary_kills_only_the_child(tmp_path: Path, llama3: tuple[Source, Vocab]) -> None:
    source, vocab = llama3
    twice = replace(
        vocab, tokens=(*vocab.tokens[:-1], vocab.tokens[0])
    )  # llama.cpp asserts that texts differ
    result = graded(tmp_path, source, twice)
    assert (result.verdict, result.exact) == ("mismatch", 0)
    assert "an internal check" in str(result.error)
    assert "GGML_ASSERT" in str(result.error)
    assert not list(Path.cwd().glob("core*.dump"))


def test_a_refused_vocabulary_says_why(tmp_path: Path, llama3: tuple[Source, Vocab]) -> None:
    source, vocab = llama3
    result = graded(tmp_path, source, replace(vocab, pre="no-such-pre-tokenizer"))
    assert "refused" in str(result.error)
    assert "no-such-pre-tokenizer" in str(result.error)


def test_a_vocabulary_without_bytes_dies_of_the_first_unknown_character(tmp_path: Path) -> None:
    vocab = Vocab("llama", ("<unk>", "a"), (TokenType.UNKNOWN, TokenType.NORMAL), scores=(0.0, 0.0))
    path = tmp_path / "bytes.gguf"
    parity.write_vocab_only(path, "llama", vocab)
    with LlamaProbe(path) as child, pytest.raises(ProbeFailure, match="an internal check"):
        child.encode([Request("가")])


@pytest.mark.parametrize("make", [material.llama3_like, material.eagle_like])
def test_a_killed_child_is_asked_again(tmp_path: Path, make: Callable[[Path], int]) -> None:
    """The vocabulary that is settled on does not depend on it, though there is another candidate."""
    rows = make(tmp_path)
    source = read_source(material.checkpoint(tmp_path))
    killer = killing("kconv.vocab.llama_probe", 1)
    _, result = selection.select_vocab(material.model(rows), material.checkpoint(tmp_path))
    killer.join()
    assert len(list(candidates(source))) > 1
    assert (result.candidate, result.verdict) == (next(iter(candidates(source))).name, "exact")
    assert len(result.tried) == 1


def test_one_that_is_killed_twice_is_no_verdict(tmp_path: Path, llama3: tuple[Source, Vocab]) -> None:
    _, vocab = llama3
    killer = killing("kconv.vocab.llama_probe", 2)
    with pytest.raises(ChildDied, match="signal 9") as caught:
        selection.select_vocab(
            material.model(vocab.size),
            material.checkpoint(tmp_path / "llama3"),
            disabled_adapters=("end-of-turn",),
            allow_mismatch=True,
        )
    killer.join()
    assert caught.value.exit_code == 4


def test_one_dying_candidate_does_not_hide_the_next(
    tmp_path: Path, llama3: tuple[Source, Vocab], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, vocab = llama3
    twice = replace(vocab, tokens=(*vocab.tokens[:-1], vocab.tokens[0]))
    both = [Candidate("bad", twice), Candidate("good", vocab)]
    monkeypatch.setattr(selection, "candidates", lambda source: iter(both))
    _, result = selection.select_vocab(
        material.model(vocab.size),
        material.checkpoint(tmp_path / "llama3"),
        disabled_adapters=("end-of-turn",),
    )
    assert (result.candidate, result.verdict) == ("good", "exact")
    assert result.tried == {"bad": 0, "good": result.texts}


def test_what_llama_cpp_dies_of_is_never_allowed(
    tmp_path: Path, llama3: tuple[Source, Vocab], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, vocab = llama3
    twice = replace(vocab, tokens=(*vocab.tokens[:-1], vocab.tokens[0]))
    monkeypatch.setattr(selection, "candidates", lambda source: iter([Candidate("bad", twice)]))
    with pytest.raises(TokenMismatch, match="GGML_ASSERT"):
        selection.select_vocab(
            material.model(vocab.size), material.checkpoint(tmp_path / "llama3"), allow_mismatch=True
        )


def test_the_error_shows_text_and_both_token_lists(
    tmp_path: Path, llama3: tuple[Source, Vocab], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, vocab = llama3
    rows, folder = vocab.size, material.checkpoint(tmp_path / "llama3")
    monkeypatch.setattr(selection, "candidates", lambda source: iter([Candidate("wrong", _wrong_pre(vocab))]))
    with pytest.raises(TokenMismatch) as caught:
        selection.select_vocab(material.model(rows), folder)
    message = str(caught.value)
    assert caught.value.exit_code == 1
    assert "best of 1: wrong, " in message
    lines = message.splitlines()
    ours, theirs = (
        next(line for line in lines if re.match(rf"\s+{name}\s*:", line))
        for name in ("tokenizer.json", "llama.cpp")
    )
    assert ours.split(":", 1)[1] != theirs.split(":", 1)[1]
    assert "--allow-tokenizer-mismatch" in message
    model, result = selection.select_vocab(material.model(rows), folder, allow_mismatch=True)
    assert result.verdict == "mismatch"
    assert model.vocab is not None
    assert [note.warning for note in model.notes if note.name == "tokenizer-mismatch"] == [True]


def test_more_tokens_than_rows_is_refused(tmp_path: Path) -> None:
    rows = material.dot42_like(tmp_path)
    with pytest.raises(VocabError, match="rows"):
        selection.select_vocab(material.model(rows - 100), material.checkpoint(tmp_path))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    rows = material.dot42_like(tmp_path / "checkpoint")
    before = sorted(os.listdir(tmp_path / "checkpoint"))
    selection.select_vocab(material.model(rows), material.checkpoint(tmp_path / "checkpoint"))
    assert sorted(os.listdir(tmp_path / "checkpoint")) == before
    assert list(temporary.iterdir()) == []
