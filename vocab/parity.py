"""Token parity: does llama.cpp give the ids the checkpoint's own tokenizer gives?

Measured on a vocabulary-only GGUF before any weight is read, or on a finished file. A text counts as equal
when every way it was asked gives the same ids: with special tokens parsed; for text that spells none also
without; for some with BOS and EOS as the vocabulary declares them.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..core.gguf_file import read_header, write_header
from ..core.vocabulary import SPM, WORDPIECE, Vocab, gguf_keys
from . import other_answers, rewritten
from .exam import Exam, Question, exam
from .in_gguf import read_vocab
from .probe import LlamaProbe, ProbeFailure, Request
from .tokenizer import Source

OnSomeText = Literal[
    "leading-space",
    "extra-spaces",
    "nfc",
    "sentencepiece",
    "ordinary-words",
    "in-vocabulary",
    "plain-letters",
]
Verdict = Literal["exact", OnSomeText, "mismatch"]
ON_SOME_TEXT: tuple[OnSomeText, ...] = get_args(OnSomeText)
"""Verdicts of vocabularies that are exact on a kind of text, which ``Parity`` describes."""


@dataclass(frozen=True)
class Difference:
    """A text on which the two disagree, with the pieces behind the ids."""

    text: str
    parse_special: bool
    add_special: bool
    expected: tuple[int, ...]
    got: tuple[int, ...]
    expected_pieces: tuple[str, ...]
    got_pieces: tuple[str, ...]


@dataclass(frozen=True)
class Parity:
    """The result for one vocabulary: ``exact`` of ``texts`` texts give the same ids.

    ``leading-space``: all do once the text given to llama.cpp has the space the original tokenizer puts in
    front by itself. ``extra-spaces``: all do once it lacks spaces, those that the original removes or a first
    one that makes it add none; a stretch of one single space between special tokens is left out of account.
    ``nfc``: all do once it is in Unicode form NFC, which ``not_nfc`` of the texts are not, ``other_form``
    of them with other ids. ``sentencepiece``: all are as SentencePiece has them, whose model a tokenizer.json
    was made of, and the others no plain text (``sentencepiece_copy``). ``departing``: texts a tokenizer.json
    beside the SentencePiece model reads in another way than that. ``ordinary-words``: all do once words that
    the tokenizer takes for unknown whatever they are made of, very long ones above all, are unknown to
    llama.cpp, too (wordpiece.py). ``in-vocabulary``: all do that have no character which the tokenizer spells
    in bytes; for these llama.cpp has the unknown token (spelled_bytes.py). ``plain-letters``: all do that
    have no mark and no letter with two cases beyond ASCII, and the others are as the tokenizer would have
    them with llama.cpp's classes of letters (letter_classes.py). ``error`` says why llama.cpp could
    not be asked. ``tried`` has the number of equal texts for every candidate measured on the way.
    ``different`` are indices into the texts. ``ties`` of the equal ones are so only because another cut is as
    good (``Source.equally_good``).
    """

    candidate: str
    texts: int
    exact: int
    verdict: Verdict
    difference: Difference | None = None
    error: str | None = None
    tried: Mapping[str, int] = field(default_factory=dict)
    different: tuple[int, ...] = field(default=(), repr=False)
    ties: int = 0
    not_nfc: int = 0
    other_form: int = 0
    departing: int = 0

    def to_json(self) -> dict[str, Any]:
        """For the manifest and ``--json``."""
        return {
            "verdict": self.verdict,
            "candidate": self.candidate,
            "texts": self.texts,
            "equal": self.exact,
            "ties": self.ties,
            "difference": asdict(self.difference) if self.difference else None,
            "tried": dict(self.tried),
            **({"not_in_nfc": self.not_nfc} if self.not_nfc else {}),
            **({"tokenizer_json_departs": self.departing} if self.departing else {}),
        }


@dataclass(frozen=True)
class Declared:
    """What a vocabulary says llama.cpp shall put around and before a text."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    add_space_prefix: bool


def write_vocab_only(path: Path, arch: str, vocab: Vocab) -> None:
    """Write a GGUF that holds a vocabulary and nothing else; llama.cpp loads it with vocab_only."""
    write_header(path, arch, gguf_keys(vocab), ())


def declared(vocab: Vocab) -> Declared:
    """What a vocabulary puts around a text."""
    last = "eos" if vocab.model != WORDPIECE else "seperator"
    return Declared(
        before=(vocab.special["bos"],) if vocab.add_bos and "bos" in vocab.special else (),
        after=(vocab.special[last],) if (vocab.add_eos or last != "eos") and last in vocab.special else (),
        add_space_prefix=vocab.add_space_prefix and vocab.model == SPM,
    )


def check_file(path: Path, source: Source, extra_texts: Sequence[str] = ()) -> Parity:
    """Measure a finished GGUF against a checkpoint's tokenizer. Raises GgufError for a damaged header."""
    vocab, _ = read_vocab(read_header(path).metadata)
    return examine(path, vocab, source, extra_texts)[0]


def examine(path: Path, vocab: Vocab, source: Source, extra_texts: Sequence[str] = ()) -> tuple[Parity, Exam]:
    """``check_file`` for a file whose vocabulary has been read, and what it was asked."""
    with LlamaProbe(path) as probe:
        probe.load()
        questions = exam_for(probe, declared(vocab), source, extra_texts)
        return grade(path.name, probe, questions, source, declared(vocab)), questions


def exam_for(probe: LlamaProbe, around: Declared, source: Source, extra_texts: Sequence[str] = ()) -> Exam:
    """The exam; llama.cpp is asked while the tokenizer is."""

    def ahead(asked: Sequence[str], questions: Sequence[Question]) -> None:
        as_is, *others = _requests(asked, questions, source, around)
        probe.ahead([*as_is, *(request for each in others for request in each.values())])

    return exam(source, extra_texts, ahead)


def _requests(
    asked: Sequence[str], questions: Sequence[Question], source: Source, around: Declared
) -> tuple[list[Request], dict[int, Request], dict[int, Request], dict[int, Request]]:
    """What llama.cpp is asked: texts as they are, with spaces written out, in NFC, with ordinary words."""
    as_is = [Request(asked[text], parse, add) for text, parse, add in questions]
    composed = rewritten.composed(as_is, source)
    normal = [composed.get(at, request) for at, request in enumerate(as_is)] if composed else as_is
    spaced = rewritten.spaced(normal, source, adds_space=around.add_space_prefix)
    return as_is, spaced, composed, rewritten.ordinary_words(as_is, source)


def grade(name: str, probe: LlamaProbe, questions: Exam, source: Source, around: Declared) -> Parity:
    """Put an exam to llama.cpp. What it cannot answer, because the vocabulary broke it, is a mismatch."""
    as_is, spaced, composed, plainer = _requests(questions.texts, questions.questions, source, around)
    total = len(questions.texts)
    try:
        got = probe.encode([*as_is, *spaced.values(), *composed.values(), *plainer.values()])
    except ProbeFailure as failure:
        return Parity(name, total, 0, "mismatch", error=str(failure), different=tuple(range(total)))
    wrong, ties = _wrong(questions, dict(enumerate(got[: len(as_is)])), source, around)
    if not wrong:
        return Parity(
            name, total, total, "exact", ties=ties, departing=other_answers.departing(questions, source)
        )
    different = tuple(dict.fromkeys(questions.questions[index].text for index in wrong))
    verdict: Verdict = "mismatch"
    rest = len(as_is) + len(spaced)
    respaced = dict(zip(spaced, got[len(as_is) : rest], strict=True))
    end = rest + len(composed)
    normalized = dict(zip(composed, got[rest:end], strict=True))
    ordinary_ = dict(zip(plainer, got[end:], strict=True))
    if composed.keys() >= set(wrong) and not _wrong(questions, normalized, source, around)[0]:
        verdict = "nfc"
    elif plainer.keys() >= set(wrong) and not _wrong(questions, ordinary_, source, around)[0]:
        verdict = "ordinary-words"
    elif spaced and not _wrong(questions, respaced, source, around)[0]:
        lacks_prefix = source.prefix is not None and not around.add_space_prefix
        verdict = "leading-space" if lacks_prefix else "extra-spaces"
    elif _right_by(other_answers.of_original(questions, wrong, source), wrong, got, source, around):
        verdict = "sentencepiece"
    elif _right_by(other_answers.of_unknown(questions, wrong, source), wrong, got, source, around):
        verdict = "in-vocabulary"
    elif _right_by(other_answers.of_rough_classes(questions, wrong, source), wrong, got, source, around):
        verdict = "plain-letters"
    first = _difference(questions, wrong[0], got[wrong[0]], source, around)
    not_nfc = {questions.questions[at].text for at in composed}
    equal = total - len(different)
    found = Parity(name, total, equal, verdict, first, different=different, ties=ties)
    return replace(found, not_nfc=len(not_nfc), other_form=len(not_nfc & set(different)))


def _right_by(
    other: Exam | None, wrong: Sequence[int], got: Sequence[array[int]], source: Source, around: Declared
) -> bool:
    """Whether the answers that were wrong are right by another exam's."""
    return other is not None and not _wrong(other, {index: got[index] for index in wrong}, source, around)[0]


def _wrong(
    questions: Exam, got: Mapping[int, array[int]], source: Source, around: Declared
) -> tuple[list[int], int]:
    """Indices of the questions answered differently, and how many texts are cut otherwise but as well."""
    before, after = array("i", around.before), array("i", around.after)
    wrong = []
    ties: set[int] = set()
    for index, ids in got.items():
        question, answer = questions.questions[index], questions.answers[index]
        if question.add_special:
            answer = before + answer + after
        if ids == answer:
            continue
        if source.equally_good is not None and source.equally_good(ids, answer):
            ties.add(question.text)
        else:
            wrong.append(index)
    return wrong, len(ties)


def _difference(questions: Exam, index: int, got: array[int], source: Source, around: Declared) -> Difference:
    question = questions.questions[index]
    expected = tuple(questions.answers[index])
    if question.add_special:
        expected = (*around.before, *expected, *around.after)
    return Difference(
        text=questions.texts[question.text],
        parse_special=question.parse_special,
        add_special=question.add_special,
        expected=expected,
        got=tuple(got),
        expected_pieces=_pieces(source, expected),
        got_pieces=_pieces(source, tuple(got)),
    )


def _pieces(source: Source, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple((source.tokens[token_id] or "") if 0 <= token_id < source.size else "?" for token_id in ids)
