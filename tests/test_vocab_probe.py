"""llama.cpp and the tokenizer are asked side by side, and nothing that was asked too early counts."""

from __future__ import annotations

import contextlib
import os
import signal
from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import vocab_material as material

from kconv.core.children import ChildRefused
from kconv.core.vocabulary import TokenType, Vocab
from kconv.vocab import exam, parity
from kconv.vocab.candidates import candidates
from kconv.vocab.probe import LlamaProbe, ProbeFailure, Request
from kconv.vocab.sources import read_source
from kconv.vocab.texts import built_in
from kconv.vocab.tokenizer import Source
from kconv.vocab.tokenizer_process import TextsRefused

FEW = [Request("가나다"), Request("a b", parse_special=False), Request("<|begin_of_text|>가")]


@pytest.fixture
def llama3(tmp_path: Path) -> tuple[Source, Vocab, Path]:
    material.llama3_like(tmp_path / "llama3")
    source = read_source(material.checkpoint(tmp_path / "llama3"))
    vocab = next(iter(candidates(source))).vocab
    path = tmp_path / "vocab.gguf"
    parity.write_vocab_only(path, "llama", vocab)
    return source, vocab, path


def right(source: Source, requests: Sequence[Request]) -> list[list[int]]:
    return [source.encode(request.text, request.parse_special) for request in requests]


def answers(probe: LlamaProbe, requests: Sequence[Request]) -> list[list[int]]:
    return [list(ids) for ids in probe.encode(requests)]


def test_the_file_may_be_written_while_llama_cpp_is_loaded(llama3: tuple[Source, Vocab, Path]) -> None:
    source, vocab, path = llama3
    path.unlink()
    with LlamaProbe(path) as probe:
        parity.write_vocab_only(path, "llama", vocab)
        probe.load()
        assert answers(probe, FEW) == right(source, FEW)


@pytest.mark.parametrize("early", [FEW, FEW[:1], []], ids=["the same", "fewer", "none"])
def test_only_what_is_asked_for_in_the_end_is_answered(
    llama3: tuple[Source, Vocab, Path], early: list[Request]
) -> None:
    source, _, path = llama3
    with LlamaProbe(path) as probe:
        probe.ahead(early)
        assert answers(probe, FEW) == right(source, FEW)


def test_a_child_that_is_killed_after_it_was_asked_is_replaced(llama3: tuple[Source, Vocab, Path]) -> None:
    source, _, path = llama3
    with LlamaProbe(path) as probe:
        probe.ahead(FEW)
        os.kill(probe._child.pid, signal.SIGKILL)
        assert answers(probe, FEW) == right(source, FEW)


def test_many_texts_keep_their_order(llama3: tuple[Source, Vocab, Path]) -> None:
    """They are read in several threads, some hundred at once."""
    source, _, path = llama3
    requests = [Request(text) for text in built_in()] + [Request(text, False) for text in built_in()[::-1]]
    with LlamaProbe(path) as probe:
        got = probe.encode(requests)
    texts = list(built_in())
    assert got == source.encode_batch(texts, True) + source.encode_batch(texts[::-1], False)


def test_llama_cpp_is_asked_before_the_tokenizer_answers(llama3: tuple[Source, Vocab, Path]) -> None:
    source, vocab, path = llama3
    order: list[str] = []

    class Watched(LlamaProbe):
        def ahead(self, requests: Sequence[Request]) -> None:
            order.append(f"llama.cpp {len(requests)}")
            super().ahead(requests)

        def encode(self, requests: Sequence[Request]) -> list[array[int]]:
            order.append(f"answers {len(requests)}")
            return super().encode(requests)

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        order.append("tokenizer")
        return source.encode_batch(texts, parse_special)

    watched = replace(source, encode_batch=encode)
    with Watched(path) as probe:
        questions = parity.exam_for(probe, parity.declared(vocab), watched)
        result = parity.grade("", probe, questions, watched, parity.declared(vocab))
    count = len(questions.questions)
    assert order == [f"llama.cpp {count}", "tokenizer", "tokenizer", f"answers {count}"]
    assert result.verdict == "exact"


def test_texts_the_tokenizer_refuses_do_not_count(llama3: tuple[Source, Vocab, Path]) -> None:
    """Though llama.cpp was asked for them: it is asked again, for the others."""
    source, vocab, path = llama3

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        ids = source.encode_batch(texts, parse_special)
        refused = [at for at, text in enumerate(texts) if "한" in text]
        if refused:
            raise TextsRefused("no ids", refused, ids)
        return ids

    refusing = replace(source, encode_batch=encode)
    with LlamaProbe(path) as probe:
        questions = parity.exam_for(probe, parity.declared(vocab), refusing)
        result = parity.grade("", probe, questions, refusing, parity.declared(vocab))
    assert result.verdict == "exact"
    assert questions.left_out == sum("한" in text for text in exam.exam(source).texts) > 100
    assert not any("한" in text for text in questions.texts)


def test_a_vocabulary_that_is_refused_after_it_was_asked(tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    parity.write_vocab_only(
        path, "llama", Vocab("gpt2", ("a",), (TokenType.NORMAL,), merges=("a a",), pre="?")
    )
    with LlamaProbe(path) as probe:
        probe.load()
        with contextlib.suppress(ChildRefused):
            probe._child.receive(1)
        probe.ahead(FEW)
        with pytest.raises(ProbeFailure, match=r"llama\.cpp refused the vocabulary"):
            probe.encode(FEW)
