"""Texts with masks as ByT5 and KEByT5 were pre-trained on: the ids 258, 257, 256 …, not the <extra_id_N>."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from demo_texts.generator import JOINT

PAD, EOS, BYTE_OFFSET, FIRST_SENTINEL = 0, 1, 3, 258
MOST_MASKS = 7  # the ids 258 to 251: bytes 0xFF to 0xF8, which UTF-8 never has

Batch = dict[str, Any]
Example = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Kind:
    """Batches of one shape, as oneDNN takes long to prepare products of every new one.

    ``share`` of the characters of about ``text`` bytes are masked; ``source`` and ``target`` are the ids of
    the encoder and the decoder. ByT5 hides 15 %; with more to say, so small a model learns sooner to say it.
    """

    text: tuple[int, int]
    share: float
    source: int
    target: int
    rows: float  # in rows of the command line

    def example(self, stream: Iterator[str], rng: Random) -> Example:
        """The next example that has room."""
        while True:
            text = next(stream)
            if self.text[0] > 128:  # two documents, lest there be little text
                text += "\n" + next(stream)
            source, target = masked(window(text, rng.uniform(*self.text), rng), rng, self.share)
            if len(source) <= self.source and len(target) <= self.target:
                return source, target


def byte_ids(text: str) -> list[int]:
    """Ids of a text's bytes, without </s>."""
    return [byte + BYTE_OFFSET for byte in text.encode()]


def window(text: str, limit: float, rng: Random) -> str:
    """Whole sentences of a text in a row, up to ``limit`` bytes but one at least."""
    sentences = re.split(r"(?<=[.?!])(?=\s)", text)
    start = rng.randrange((2 * len(sentences) + 2) // 3)
    taken = sentences[start].lstrip()
    for sentence in sentences[start + 1 :]:
        if len((taken + sentence).encode()) > limit:
            break
        taken += sentence
    return taken


def masked(text: str, rng: Random, share: float = 1 / 6) -> Example:
    """Encoder ids with masks, and the ids to say: each mask followed by what it hides, one more mask, </s>.

    About ``share`` of the characters go, in one to MOST_MASKS spans.
    """
    letters, word_ends = _parted(text)
    spans = _spans(letters, word_ends, rng, share)
    source: list[int] = []
    target: list[int] = []
    done = 0
    for number, (start, end) in enumerate(spans):
        mask = FIRST_SENTINEL - number
        source += [*byte_ids(letters[done:start]), mask]
        target += [mask, *byte_ids(letters[start:end])]
        done = end
    source += byte_ids(letters[done:])
    return [*source, EOS], [*target, FIRST_SENTINEL - len(spans), EOS]


def _parted(text: str) -> tuple[str, list[int]]:
    """The text without JOINT, and the places in it where words or their particles begin or end."""
    borders = {match.start() for match in re.finditer(r"\b|\x1f|(?<=\x1f)", text)}
    letters = ""
    word_ends: set[int] = {0}
    for place, letter in enumerate(text):
        if place in borders:
            word_ends.add(len(letters))
        if letter != JOINT:
            letters += letter
    return letters, sorted({*word_ends, len(letters)})


def _spans(letters: str, word_ends: Sequence[int], rng: Random, share: float) -> list[tuple[int, int]]:
    """What to hide, in the order of the text.

    Most spans begin and end at ``word_ends``, the rest anywhere between characters, with a sixth to hide
    ByT5's 20 bytes long on average; never inside a character, as the model is to fill gaps in valid text.
    """
    budget = max(1, round(len(letters) * share))
    longer = round(6 * share)
    spans: list[tuple[int, int]] = []
    for _ in range(50):
        if rng.random() < 0.6:
            first = rng.randrange(len(word_ends) - 1)
            last = min(first + longer * rng.choice((1, 1, 2, 3)), len(word_ends) - 1)
            start, end = word_ends[first], word_ends[last]
        else:
            start = rng.randrange(len(letters))
            end = min(len(letters), start + 1 + int(rng.expovariate(1 / 7 / longer)))
        apart = all(end < other or start > beyond for other, beyond in spans)
        if apart and (end - start <= budget or not spans) and letters[start:end].strip():
            spans.append((start, end))
            budget -= end - start
        if budget <= 0 or len(spans) == MOST_MASKS:
            break
    return sorted(spans)


def padded(examples: list[Example], width: int, depth: int) -> Batch:
    """input_ids, attention_mask and labels (−100 where nothing is to be said)."""
    import torch

    return {
        "input_ids": torch.tensor([source + [PAD] * (width - len(source)) for source, _ in examples]),
        "attention_mask": torch.tensor(
            [[1] * len(source) + [0] * (width - len(source)) for source, _ in examples]
        ),
        "labels": torch.tensor([target + [-100] * (depth - len(target)) for _, target in examples]),
    }
