"""What an encoder-decoder is measured on: pairs of a source and what the decoder is to say of it.

The user's files hold pairs, a source and a target a line with a tab between them; of a text without tabs,
and of the built-in ones, pairs are made: gaps to fill (gaps.py), or, where the vocabulary has no sentinels,
the second half of a stretch of text to be said after the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..core.errors import InputError
from ..core.windows import Window
from .gaps import Gaps, gaps_of, whole, with_gaps
from .texts import udhr
from .tokenizer import Source

Pair = tuple[list[int], list[int]]
_MORE = 3  # times as much built-in text as decoders read, since only what fills the gaps is measured
_OUTPUT = 128 << 20  # bytes of logits llama.cpp has ready for all an encoder reads at once
_LEAST = 128


@dataclass(frozen=True)
class PairReader:
    """How a model reads: its tokenizer, the decoder's first token, the EOS after each text, if any.

    ``size`` are the most tokens of a source made of a running text; ``context`` those the decoder was trained
    to see at once, ``source_context`` those the encoder was, more where a front end joins several.
    """

    source: Source
    start: int
    eos: int | None
    size: int
    context: int
    source_context: int

    @property
    def ending(self) -> tuple[int, ...]:
        """What ends both texts."""
        return () if self.eos is None else (self.eos,)

    def window(self, text: int, pair: Pair) -> Window:
        """The pair as both models read it."""
        target = (self.start, *pair[1], *self.ending)
        return Window(text, target, source=(*pair[0], *self.ending))


def default_size(most: int, vocabulary: int) -> int:
    """Tokens of a source by default: ``most``, fewer with a huge vocabulary.

    llama.cpp's output buffer has a row of the vocabulary for every token an encoder reads (llama-context.cpp,
    llama_context::encode), though it is not asked for.
    """
    return min(most, max(_LEAST, _OUTPUT // (4 * vocabulary)))


def way_of_pairing(source: Source) -> str:
    """How pairs are made of a running text, in words."""
    return "gaps to fill" if gaps_of(source) else "the second half of a stretch after the first"


def built_in_pairs(
    reader: PairReader, amounts: Mapping[str, int], *, tokens: int | None = None
) -> list[Window]:
    """Pairs of the built-in texts, of ``amounts`` tokens (times three) of each or of ``tokens``."""
    windows: list[Window] = []
    for at, (language, amount) in enumerate(amounts.items()):
        ids = reader.source.encode_lines(udhr(language))
        windows += _made(reader, at, ids[: _MORE * amount if tokens is None else tokens])
    return windows


def text_pairs(reader: PairReader, texts: Sequence[str], *, tokens: int | None = None) -> list[Window]:
    """Pairs of the user's texts, at most ``tokens`` tokens of each, source and target counted together.

    Raises InputError for lines that are no pair among lines that are, for pairs with an empty or too long
    side, and for texts too short to make a pair of.
    """
    windows: list[Window] = []
    for at, text in enumerate(texts):
        lines = _lines(text, at)
        if lines is None:
            windows += _made(reader, at, reader.source.encode(text.strip(), True)[:tokens])
        else:
            windows += _given(reader, at, lines, tokens)
    return windows


def _lines(text: str, at: int) -> list[tuple[int, str, str]] | None:
    """Number, source and target of each line; None for a text without tabs."""
    if "\t" not in text:
        return None
    lines = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) != 2:
            problem = "no tab" if len(parts) == 1 else f"{len(parts) - 1} tabs"
            raise InputError(
                f"text {at + 1}, line {number}: {problem}, but other lines have tabs; expected "
                "source<TAB>target in every line",
                hint="write one pair per line; text without any tab is turned into pairs",
            )
        if not all(part.strip() for part in parts):
            side = "source" if not parts[0].strip() else "target"
            raise InputError(f"text {at + 1}, line {number}: the {side} is empty", hint="give both sides")
        lines.append((number, parts[0], parts[1]))
    return lines


def _given(
    reader: PairReader, at: int, lines: Sequence[tuple[int, str, str]], tokens: int | None
) -> Iterator[Window]:
    """Windows of the user's pairs until ``tokens`` are reached; the last target may be cut short."""
    left = tokens
    for number, *texts in lines:
        pair = [reader.source.encode(text, True) for text in texts]
        limits = (reader.source_context, reader.context)
        for side, ids, limit in zip(("source", "target"), pair, limits, strict=True):
            if len(ids) + 1 > limit:
                raise InputError(
                    f"text {at + 1}, line {number}: the {side} has {len(ids)} tokens, expected at most "
                    f"{limit - 1}, which with EOS fill the model's context",
                    hint="shorten it or split the pair in two",
                )
        window = reader.window(at, (pair[0], pair[1]))
        if left is not None and window.tokens > left:
            kept = left - len(window.source)
            if kept >= 2:
                yield Window(at, window.ids[:kept], source=window.source)
            elif left == tokens:
                raise InputError(
                    f"text {at + 1}, line {number}: {len(window.source)} tokens of source use up all "
                    f"{tokens} tokens",
                    hint=f"raise --tokens to {window.tokens} or more",
                )
            return
        left = None if left is None else left - window.tokens
        yield window


def _made(reader: PairReader, at: int, ids: Sequence[int]) -> list[Window]:
    """Pairs of a running text, cut into stretches of about the same length."""
    if len(ids) < 2:
        raise InputError(
            f"text {at + 1} has {len(ids)} token{'' if len(ids) == 1 else 's'}, too few to predict any",
            hint="give a longer text",
        )
    gaps = gaps_of(reader.source)
    style = gaps or Gaps((), 1)
    size = max(2, reader.size - len(reader.ending))
    count = -(-len(ids) // size)
    bounds = [whole(ids, number * len(ids) // count, style) for number in range(count + 1)]
    windows = []
    for begin, end in itertools.pairwise(bounds):
        stretch = list(ids[begin:end])
        if len(stretch) > 1:
            middle = len(stretch) // 2
            pair = with_gaps(stretch, gaps) if gaps else (stretch[:middle], stretch[middle:])
            windows.append(reader.window(at, pair))
    return windows
