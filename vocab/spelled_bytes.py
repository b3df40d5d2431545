"""Unigram vocabularies with byte fallback (mT5, UMT5): llama.cpp reads what they spell in bytes as unknown.

Its unigram tokenizer knows no byte fallback (src/llama-vocab.cpp, llm_tokenizer_ugm), and no other of its
tokenizers cuts as a unigram model does. So such a vocabulary is exact on text whose characters it has.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence

from ..core.vocabulary import TokenType
from .texts import udhr
from .tokenizer import Source


def octets_of(source: Source) -> frozenset[int]:
    """The ids that stand for bytes; none in other than unigram models with an unknown token."""
    if source.kind != "sentencepiece unigram" or "unknown" not in source.special:
        return frozenset()
    return frozenset(index for index, kind in enumerate(source.types) if kind is TokenType.BYTE)


def with_unknown(ids: Sequence[int], octets: frozenset[int], unknown: int) -> array[int] | None:
    """``ids`` with one ``unknown`` token for each run of ``octets``; None where there are none of these."""
    if octets.isdisjoint(ids):
        return None
    replaced = array("i")
    for each in ids:
        if each not in octets:
            replaced.append(each)
        elif not replaced or replaced[-1] != unknown:
            replaced.append(unknown)
    return replaced


@functools.cache
def ordinary_texts() -> frozenset[str]:
    """Korean and English that a vocabulary must have the characters of to be of use."""
    return frozenset((*udhr("kor"), *udhr("eng")))
