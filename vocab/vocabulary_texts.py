"""Texts that a tokenizer's own vocabulary gives: its tokens, and merges that compete."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from ..core.tensor import Array
from ..core.vocabulary import TokenType
from .decoding import byte_symbols
from .tokenizer import META_SPACE, Source

_LINES = 24
_COMPETING = 8000


def every_token(source: Source) -> list[str]:
    """Texts in which every token's own text stands on a line of its own, several to a text."""
    normal = TokenType.NORMAL
    kinds = zip(source.tokens, source.types, strict=True)
    return _in_lines(source, [text for text, kind in kinds if text is not None and kind is normal])


def competing_merges(source: Source) -> list[str]:
    """Texts in which two merges want the same piece, so that their order decides: of many, a sample."""
    if not source.merges:
        return []
    parts = " ".join(source.merges).split(" ")
    lefts, rights = parts[::2], parts[1::2]
    step = max(len(lefts) // _COMPETING, 1)
    by_left: dict[str, list[int]] = {right: [] for right in rights[::step]}
    for rank, left in enumerate(lefts):
        if left in by_left:
            by_left[left].append(rank)
    texts: list[str] = []
    for rank in range(0, len(lefts), step):
        rivals = by_left[rights[rank]]
        if rivals:
            at = bisect.bisect_left(rivals, rank)
            nearest = min(rivals[max(at - 1, 0) : at + 1], key=lambda rival: abs(rival - rank))
            texts.append(lefts[rank] + rights[rank] + rights[nearest])
    return _in_lines(source, texts)


def _plain(source: Source, tokens: Sequence[str]) -> Iterator[str]:
    """The texts tokens stand for, but for those that are half a character."""
    if source.pieces is not None:
        yield from (token.removeprefix(source.pieces.sign) for token in tokens)
    elif source.kind not in ("byte-level bpe", "utf-8 bytes"):
        yield from (token.replace(META_SPACE, " ") for token in tokens)
    else:
        characters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), "<u4")
        symbols = _bytes_of_symbols()
        data = symbols[np.minimum(characters, len(symbols) - 1)].tobytes()
        end = 0
        for token in tokens:
            begin, end = end, end + len(token)
            try:
                yield data[begin:end].decode()
            except UnicodeDecodeError:
                continue


@functools.cache
def _bytes_of_symbols() -> Array:
    """The bytes that characters of byte-level tokens stand for; of others, one that is in no text."""
    symbols = byte_symbols()
    table = np.full(max(map(ord, symbols)) + 2, 0xFF, np.uint8)
    table[[*map(ord, symbols)]] = [*symbols.values()]
    return table


def _in_lines(source: Source, tokens: Sequence[str]) -> list[str]:
    lines = list(_plain(source, tokens))
    return ["\n".join(lines[at : at + _LINES]) for at in range(0, len(lines), _LINES)]
