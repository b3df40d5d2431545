"""What texts that are cut differently have in common, where it is something known."""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from ..core.language import phrase
from ..core.vocabulary import TokenType
from .exam import Exam
from .parity import Parity
from .tokenizer import Source, added_pattern

_SYLLABLE = re.compile("[\uac00-\ud7a3]")
_FORMS: tuple[Literal["NFC", "NFKC", "NFD", "NFKD"], ...] = ("NFC", "NFKC", "NFD", "NFKD")


def explanation(parity: Parity, questions: Exam, source: Source) -> str | None:
    """What all differing texts have in common, where that is something known; for the hint of an error."""
    if parity.error or not parity.different:
        return None
    texts_apart = [questions.texts[index] for index in parity.different]
    if source.pieces is not None and source.pieces.strip_accents:
        return _of_accents(parity, questions)
    if source.kind == "sentencepiece unigram":
        return _of_unigram(parity, questions, source)
    for form in _FORMS:
        known = any(form.lower() in name.lower().split("_") for name in source.normalizers)
        if known and all(unicodedata.normalize(form, text) != text for text in texts_apart):
            return phrase(
                "only texts not in Unicode form {form} differ, since the tokenizer normalizes to "
                "{form} and llama.cpp does not: use text in {form}"
            ).of(form=form)
    unknown = source.special.get("unknown")
    if unknown is not None and set(parity.different) <= _texts_with(questions, unknown):
        return phrase(
            "only texts with characters outside the vocabulary differ, since the tokenizer turns "
            "these into {token} and llama.cpp drops them"
        ).of(token=source.tokens[unknown])
    pattern = added_pattern(source.added, True)
    if pattern and all(map(pattern.search, texts_apart)):
        return phrase(
            "only texts that contain special tokens as text differ, since the tokenizer matches these in "
            "another way"
        )
    return None


def _of_accents(parity: Parity, questions: Exam) -> str | None:
    """How much of the difference is Hangul's, which canonical decomposition takes apart to take accents off.

    llama.cpp's table of decompositions has one character for each (unicode_cpts_normalize_nfd), which of
    a syllable is its first letter.
    """
    plain = {at for at, text in enumerate(questions.texts) if not _SYLLABLE.search(text)}
    different = set(parity.different)
    if not different - plain:
        return None
    return phrase(
        "the tokenizer takes off accents and takes Hangul apart into letters for it, while llama.cpp keeps "
        "only the first letter of a syllable: {hangul} of the {different} texts that differ contain Hangul; "
        "of the {plain} without it {equal} are read alike. kconv to-onnx converts the model"
    ).of(
        hangul=f"{len(different - plain):,}",
        different=f"{len(different):,}",
        plain=f"{len(plain):,}",
        equal=f"{len(plain - different):,}",
    )


def _of_unigram(parity: Parity, questions: Exam, source: Source) -> str | None:
    octets = [token for token, kind in enumerate(source.types) if kind is TokenType.BYTE]
    if octets and set(parity.different) <= set().union(*(_texts_with(questions, byte) for byte in octets)):
        return phrase(
            "only texts with characters that the vocabulary encodes as bytes differ, since "
            "llama.cpp's unigram tokenizer gives the unknown token for these"
        )
    return None


def _texts_with(questions: Exam, token: int | None) -> set[int]:
    """Indices of the texts the tokenizer gives that token for."""
    pairs = zip(questions.questions, questions.answers, strict=True)
    return {question.text for question, answer in pairs if token in answer}
