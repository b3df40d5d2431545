"""Texts that a tokenizer's own vocabulary gives: its tokens, and merges that compete."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Mapping

from ..core.vocabulary import TokenType
from .decoding import byte_symbols
from .tokenizer import META_SPACE, Source

_LINES = 24
_COMPETING = 8000


def every_token(source: Source) -> list[str]:
    """Texts in which every token's own text stands on a line of its own, several to a text."""
    return _in_lines(
        _plain(source, text)
        for text, kind in zip(source.tokens, source.types, strict=True)
        if text is not None and kind is TokenType.NORMAL
    )


def competing_merges(source: Source) -> list[str]:
    """Texts in which two merges want the same piece, so that their order decides: of many, a sample."""
    pairs = [merge.split(" ") for merge in source.merges]
    by_left: dict[str, list[int]] = {}
    for rank, (left, _) in enumerate(pairs):
        by_left.setdefault(left, []).append(rank)
    texts: list[str] = []
    step = max(len(pairs) // _COMPETING, 1)
    for rank in range(0, len(pairs), step):
        left, right = pairs[rank]
        rivals = by_left.get(right)
        if rivals:
            at = bisect.bisect_left(rivals, rank)
            nearest = min(rivals[max(at - 1, 0) : at + 1], key=lambda rival: abs(rival - rank))
            texts.append(left + right + pairs[nearest][1])
    return _in_lines(_plain(source, text) for text in texts)


def _plain(source: Source, token: str) -> str | None:
    """The text a token stands for; None for half a character."""
    if source.pieces is not None:
        return token.removeprefix(source.pieces.sign)
    if source.kind not in ("byte-level bpe", "utf-8 bytes"):
        return token.replace(META_SPACE, " ")
    try:
        return token.translate(_bytes_of_symbols()).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None


class _Others(dict[int, int]):
    """For ``str.translate``: what is no key becomes a character that is no byte."""

    def __missing__(self, character: int) -> int:
        return 0xFFFF


@functools.cache
def _bytes_of_symbols() -> Mapping[int, int]:
    """The bytes that characters of byte-level tokens stand for."""
    return _Others({ord(character): byte for character, byte in byte_symbols().items()})


def _in_lines(texts: Iterable[str | None]) -> list[str]:
    lines = [text for text in texts if text is not None]
    return ["\n".join(lines[at : at + _LINES]) for at in range(0, len(lines), _LINES)]
