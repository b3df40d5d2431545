"""Text that SentencePiece and the tokenizers library's copies of its models read in the same way."""

from __future__ import annotations

import re
import unicodedata

_SURPLUS = re.compile(r"\s\s|^\s|\s$|\u2581")


def is_plain(text: str) -> bool:
    """Whether a text has composed letters only, no marks and, once normalized, no surplus spaces.

    Compiled normalization (nmt_nfkc) maps what has another form in NFKC, makes spaces of white space and
    removes other control characters. Where it does so within a letter of several characters, or where that
    leaves two spaces side by side, the two differ.
    """
    kept = "".join(each for each in text if each.isspace() or unicodedata.category(each) not in ("Cc", "Cf"))
    normalized = unicodedata.normalize("NFKC", kept)
    if unicodedata.normalize("NFC", text) != text or _SURPLUS.search(normalized) or "\x85" in text:
        return False
    return not any(_is_part(each) for each in text) and not any(_is_part(each) for each in normalized)


def _is_part(character: str) -> bool:
    """A mark, or a part of a Hangul syllable."""
    return unicodedata.category(character).startswith("M") or "\u1100" <= character <= "\u11ff"
