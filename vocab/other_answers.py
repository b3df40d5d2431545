"""Answers llama.cpp may give that are not the tokenizer's own, but known for what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from .letter_classes import concerned
from .plain_text import is_plain
from .spelled_bytes import octets_of, ordinary_texts, with_unknown
from .tokenizer import Encoder, Source, added_pattern, cut_at

if TYPE_CHECKING:
    from .exam import Exam


def of_original(questions: Exam, wrong: Sequence[int], source: Source) -> Exam | None:
    """The exam with SentencePiece's answers to the questions ``wrong``; None where one is of plain text.

    None, too, for tokenizers that are no copy of a SentencePiece model.
    """
    if source.original is None:
        return None
    asked = [questions.questions[index] for index in wrong]
    texts = [questions.texts[question.text] for question in asked]
    pattern = added_pattern(source.added, True)
    if any(all(map(is_plain, cut_at(pattern, text)[::2])) for text in texts):
        return None
    return _by(source.original, questions, wrong)


def of_rough_classes(questions: Exam, wrong: Sequence[int], source: Source) -> Exam | None:
    """The exam with the answers of llama.cpp's classes of letters; None where one text has none of those."""
    texts = (questions.texts[questions.questions[index].text] for index in wrong)
    if source.rough is None or not all(map(concerned, texts)):
        return None
    return _by(source.rough, questions, wrong)


def _by(encode: Encoder, questions: Exam, wrong: Sequence[int]) -> Exam:
    """The exam with another tokenizer's answers to the questions ``wrong``."""
    answers = list(questions.answers)
    for parse_special in (True, False):
        those = [at for at in wrong if questions.questions[at].parse_special is parse_special]
        texts = [questions.texts[questions.questions[at].text] for at in those]
        for at, ids in zip(those, encode(texts, parse_special), strict=True):
            answers[at] = ids
    return replace(questions, answers=tuple(answers))


def of_unknown(questions: Exam, wrong: Sequence[int], source: Source) -> Exam | None:
    """The exam with the unknown token for what bytes spell; None where that is nothing, or ordinary text."""
    octets, answers = octets_of(source), list(questions.answers)
    if not octets:
        return None
    for index in wrong:
        replaced = with_unknown(answers[index], octets, source.special["unknown"])
        if replaced is None or questions.texts[questions.questions[index].text] in ordinary_texts():
            return None
        answers[index] = replaced
    return replace(questions, answers=tuple(answers))


def departing(questions: Exam, source: Source) -> int:
    """Texts of which the tokenizer.json beside a SentencePiece model has other ids."""
    if source.copy is None:
        return 0
    same = source.equally_good or (lambda one, other: False)
    pairs = zip(source.copy(questions.texts, True), questions.parsed, strict=True)
    return sum(ids != right and not same(ids, right) for ids, right in pairs)
