"""Texts with gaps to fill: what models of the T5 family were trained on, made of any text.

Pre-training took about 15 % of a text out, in spans, put a sentinel in place of each, and had the decoder
write every sentinel with what it stands for, then one more sentinel (T5: arXiv 1910.10683, section 3.1.4;
ByT5: 2105.13626, section 3). So

    한국의 <0>는 서울이다.  ->  <0>수도<1>

with EOS after both. A model that only knows this gives a perplexity that means something; on "continue this
text" it would be as surprised as by noise. Sentinels are ``<extra_id_0>``, ``<extra_id_1>`` … and spans of
three tokens on average where the vocabulary has text pieces. Byte vocabularies count their sentinels down
from the last byte (258, 257 …: bytes UTF-8 never uses; their ``<extra_id_N>`` no pre-trained model has seen)
and spans are of twenty bytes.

Gaps here lie at even distances instead of at random places, so that a proof can be repeated, and begin and
end with whole characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .byte_text import INSIDE_A_CHARACTER, NEVER_IN_UTF8
from .byte_vocabulary import KIND, OFFSET
from .tokenizer import Source

SHARE = 0.15
_PIECES, _BYTES = 3, 20


@dataclass(frozen=True)
class Gaps:
    """How gaps are made: the sentinels in order, a gap's length in tokens, ids no character begins with."""

    sentinels: tuple[int, ...]
    length: int
    inner: frozenset[int] = frozenset()


def gaps_of(source: Source) -> Gaps | None:
    """How the models with this tokenizer were trained to fill gaps; None where it has no two sentinels."""
    if source.kind == KIND:
        sentinels = tuple(OFFSET + byte for byte in NEVER_IN_UTF8)
        return Gaps(sentinels, _BYTES, frozenset(OFFSET + byte for byte in INSIDE_A_CHARACTER))
    places = {text: token for token, text in enumerate(source.tokens) if text is not None}
    ids: list[int] = []
    while (token := places.get(f"<extra_id_{len(ids)}>")) is not None:
        ids.append(token)
    return Gaps(tuple(ids), _PIECES) if len(ids) > 1 else None


def with_gaps(ids: Sequence[int], gaps: Gaps) -> tuple[list[int], list[int]]:
    """The text as the encoder reads it, and what the decoder is to say; at least two tokens are needed."""
    wanted = round(len(ids) * SHARE / gaps.length)
    count = max(1, min(wanted, len(gaps.sentinels) - 1))
    length = max(1, min(gaps.length, len(ids) // 2))
    corrupted: list[int] = []
    spoken: list[int] = []
    end = 0
    for number in range(count):
        middle = (2 * number + 1) * len(ids) // (2 * count)
        start = max(whole(ids, middle - length // 2, gaps), end)
        stop = max(whole(ids, start + length, gaps), start + 1)
        corrupted += [*ids[end:start], gaps.sentinels[number]]
        spoken += [gaps.sentinels[number], *ids[start:stop]]
        end = stop
    return [*corrupted, *ids[end:]], [*spoken, gaps.sentinels[count]]


def whole(ids: Sequence[int], at: int, gaps: Gaps) -> int:
    """``at``, or a little before it, where no character is cut."""
    for back in range(4):
        if not 0 < at - back < len(ids) or ids[at - back] not in gaps.inner:
            return at - back
    return at
