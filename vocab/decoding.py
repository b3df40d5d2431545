"""Token ids back to text, for people to read."""

from __future__ import annotations

import functools
from collections.abc import Iterable

from ..core.vocabulary import TokenType
from .tokenizer import META_SPACE, Source


def token_bytes(source: Source, token: int) -> bytes:
    """The UTF-8 bytes a token stands for; a special token stands for its own spelling.

    Half a character is what it is. Ids that are holes or rows without a token give ``[id]``.
    """
    text = source.tokens[token] if 0 <= token < source.size else None
    if text is None:
        return f"[{token}]".encode()
    kind = source.types[token]
    if source.pieces is not None:
        inner = text.removeprefix(source.pieces.sign)
        begins = inner == text and kind is TokenType.NORMAL
        return (f" {text}" if begins else inner).encode("utf-8", "backslashreplace")
    if kind is TokenType.BYTE and text.startswith("<0x"):
        return bytes([int(text[3:5], 16)])
    if kind is TokenType.NORMAL and source.kind in ("byte-level bpe", "utf-8 bytes"):
        symbols = byte_symbols()
        if all(character in symbols for character in text):
            return bytes(symbols[character] for character in text)
    elif kind is TokenType.NORMAL:
        text = text.replace(META_SPACE, " ")
    return text.encode("utf-8", "backslashreplace")


def decoded(source: Source, ids: Iterable[int]) -> str:
    r"""The text of several tokens; bytes that make no character are written as ``\xNN``."""
    return b"".join(token_bytes(source, token) for token in ids).decode("utf-8", "backslashreplace")


@functools.cache
def byte_symbols() -> dict[str, int]:
    """GPT-2's printable character for each byte (openai/gpt-2, encoder.py, bytes_to_unicode)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(others)}
