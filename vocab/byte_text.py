"""Tokens as people read them where one token may be a third of a syllable.

A byte by itself says nothing: it is shown with the bytes before it that belong to the same character, as
that character if it is whole then. Sentinels of byte vocabularies, bytes no text has, are shown by their ids.
"""

from __future__ import annotations

from collections.abc import Sequence

from .byte_vocabulary import KIND, OFFSET
from .decoding import decoded, token_bytes
from .tokenizer import Source

NEVER_IN_UTF8 = range(0xFF, 0xF4, -1)
INSIDE_A_CHARACTER = range(0x80, 0xC0)


def byte_of(source: Source, token: int) -> int | None:
    """The byte a token of a byte vocabulary is; None for other tokens and vocabularies."""
    return token - OFFSET if source.kind == KIND and 0 <= token - OFFSET < 256 else None


def shown(source: Source, ids: Sequence[int]) -> str:
    """The text of some tokens out of a longer text, without the parts of characters at either end."""
    if source.kind != KIND:
        return decoded(source, ids)
    return b"".join(_spelled(source, token) for token in _whole(source, ids)).decode(
        "utf-8", "backslashreplace"
    )


def shown_next(source: Source, before: Sequence[int], token: int) -> str:
    """A token that may follow ``before``: a byte together with those it continues, if it does."""
    byte = byte_of(source, token)
    if byte is None or byte in NEVER_IN_UTF8:
        return decoded(source, [token]) if byte is None else _spelled(source, token).decode()
    begun = before[len(before) - _unfinished(source, before) :] if byte in INSIDE_A_CHARACTER else []
    data = b"".join(token_bytes(source, each) for each in (*begun, token))
    return data.decode("utf-8", "backslashreplace")


def _spelled(source: Source, token: int) -> bytes:
    byte = byte_of(source, token)
    return f"[{token}]".encode() if byte in NEVER_IN_UTF8 else token_bytes(source, token)


def _whole(source: Source, ids: Sequence[int]) -> Sequence[int]:
    begin = 0
    while begin < min(3, len(ids)) and byte_of(source, ids[begin]) in INSIDE_A_CHARACTER:
        begin += 1
    return ids[begin : len(ids) - _unfinished(source, ids)]


def _unfinished(source: Source, ids: Sequence[int]) -> int:
    """How many bytes at the end begin a character that needs more of them."""
    for count in range(1, min(3, len(ids)) + 1):
        byte = byte_of(source, ids[-count])
        if byte is None or byte < 0x80:
            return 0
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4 if byte < 0xF5 else 1
            return count if count < needed else 0
    return 0
