"""The exam that a vocabulary takes: texts, how they are asked for, and the tokenizer's own answers."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import texts
from .tokenizer import Source, added_pattern
from .tokenizer_process import TextsRefused
from .vocabulary_texts import competing_merges, every_token

_FULL_SPECIALS = 24
_WITH_BOS_EOS = 60


class Question(NamedTuple):
    """One encoding both sides are asked for; ``text`` is an index into the texts."""

    text: int
    parse_special: bool
    add_special: bool = False


@dataclass(frozen=True)
class Exam:
    """Texts, questions and the right answers, without BOS and EOS.

    ``left_out`` counts texts for which the tokenizer itself has no ids.
    """

    texts: tuple[str, ...]
    questions: tuple[Question, ...]
    answers: tuple[array[int], ...]
    left_out: int = 0

    @property
    def parsed(self) -> tuple[array[int], ...]:
        """The ids of each text, special tokens parsed, which the first questions ask for."""
        return self.answers[: len(self.texts)]


def exam(
    source: Source,
    extra_texts: Sequence[str] = (),
    ahead: Callable[[Sequence[str], Sequence[Question]], None] = lambda texts, questions: None,
) -> Exam:
    """The built-in texts, those that spell the source's special tokens, and those its vocabulary gives.

    ``ahead`` is told texts and questions before the tokenizer answers; they are others if it refuses any.
    """
    specials = [token.text for token in source.added if token.text.strip()]
    roles = {source.tokens[token_id] for token_id in source.special.values()}
    specials.sort(key=lambda text: text not in roles)  # those with a role in all ways, the rest in one
    written = dict.fromkeys((*texts.built_in(), *extra_texts))
    spelling = (*texts.with_specials(specials[:_FULL_SPECIALS]), "".join(specials), " ".join(specials))
    of_vocabulary = (*every_token(source), *competing_merges(source))
    asked = tuple(dict.fromkeys((*written, *spelling, *of_vocabulary)))
    pattern = added_pattern([token for token in source.added if token.special], True)
    unspelled = [text for text in written if not (pattern and pattern.search(text))]
    ahead(asked, _questions(asked, unspelled))
    parsed = reference_ids(source, asked, True)
    unparsed = reference_ids(source, [text for text in unspelled if text in parsed], False)
    texts_asked = tuple(parsed)
    questions = _questions(texts_asked, unparsed)
    around = questions[len(parsed) + len(unparsed) :]
    return Exam(
        texts=texts_asked,
        questions=questions,
        answers=(*parsed.values(), *unparsed.values(), *(parsed[texts_asked[each.text]] for each in around)),
        left_out=len(asked) - len(parsed),
    )


def _questions(asked: Sequence[str], unparsed: Iterable[str]) -> tuple[Question, ...]:
    """All texts with special tokens parsed, some without, and a few with BOS and EOS."""
    at = {text: index for index, text in enumerate(asked)}
    return (
        *(Question(index, True) for index in range(len(asked))),
        *(Question(at[text], False) for text in unparsed),
        *(Question(index, True, True) for index in range(0, len(asked), max(len(asked) // _WITH_BOS_EOS, 1))),
    )


def reference_ids(source: Source, asked: Iterable[str], parse_special: bool) -> dict[str, array[int]]:
    """The ids of each text but those for which the tokenizer itself has none. Raises VocabError for all."""
    texts = list(asked)
    try:
        return dict(zip(texts, source.encode_batch(texts, parse_special), strict=True))
    except TextsRefused as refused:
        none = set(refused.indices)
        if len(none) == len(texts):
            raise
        found = zip(texts, refused.found, strict=True)
        return {text: ids for at, (text, ids) in enumerate(found) if at not in none}
