"""A token's text for people: quoted, on one line."""

from __future__ import annotations

from ..vocab.decoding import byte_symbols
from ..vocab.tokenizer import META_SPACE, Source


def readable(piece: str, *, byte_level: bool) -> str:
    """A token's text as people write it, quoted; its own symbols where they stand for half a character."""
    if not byte_level:
        return shown_text(piece.replace(META_SPACE, " "))
    symbols = byte_symbols()
    if not piece or not all(character in symbols for character in piece):
        return shown_text(piece)  # an added token stands as it is
    try:
        return shown_text(bytes(symbols[character] for character in piece).decode())
    except UnicodeDecodeError:
        return shown_text(piece)


def is_byte_level(source: Source) -> bool:
    """Whether the tokenizer's pieces are written in GPT-2's symbols for bytes."""
    return source.kind == "byte-level bpe"


def shown_text(text: str, limit: int = 80) -> str:
    """Quoted, on one line, what cannot be printed escaped."""
    visible = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit])
    return f"'{visible}{'…' if len(text) > limit else ''}'"
