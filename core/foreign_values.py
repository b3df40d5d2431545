"""Values out of manifests, headers and cards, which strangers wrote: of a known type, printable and short."""

from __future__ import annotations

import math
from typing import Any

_LONGEST = 300  # characters
_MOST = 20  # texts of a list


def number(value: object) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def text_of(value: object, *, longest: int = _LONGEST) -> str | None:
    """A printable text on one line, of at most so many characters, or None."""
    if not isinstance(value, str):
        return None
    words = " ".join(value[: 4 * longest].split())
    # Half surrogates, from YAML escapes and from file names that are not UTF-8, cannot be written.
    return "".join(character for character in words if character.isprintable())[:longest] or None


def texts_of(value: object, *, most: int = _MOST, longest: int = _LONGEST) -> list[str]:
    """The texts of a text or a list, at most so many."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    texts = (text_of(item, longest=longest) for item in items[:most])
    return [text for text in texts if text is not None]


def objects_of(value: object) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def object_of(value: object) -> dict[str, Any]:
    """An object, empty in place of anything else."""
    return value if isinstance(value, dict) else {}
