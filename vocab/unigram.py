"""SentencePiece unigram models: which cuts of a text count as the same.

A unigram model takes the cut with the largest sum of scores. SentencePiece adds in single precision, the
tokenizers library and llama.cpp in double, so where two cuts are equally good ("0000 0000 000" and
"000 0000 0000") rounding decides, and each decides its own way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from .tokenizer import TokenTable

_SINGLE_PRECISION = 1e-6  # of a sum of some dozens of scores


Cut = Sequence[int]


def equally_good(table: TokenTable, scores: Sequence[float]) -> Callable[[Cut, Cut], bool]:
    """A function that says whether two cuts spell the same and their scores differ by rounding only."""

    def same(one: Cut, other: Cut) -> bool:
        spelled = [[table.tokens[token] or "" for token in cut] for cut in (one, other)]
        if "".join(spelled[0]) != "".join(spelled[1]):
            return False
        sums = [math.fsum(scores[token] for token in cut) for cut in (one, other)]
        return math.isclose(*sums, rel_tol=_SINGLE_PRECISION)

    return same
