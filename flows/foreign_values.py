"""Values out of manifests and headers, which come from strangers: of a known type, printable and short."""

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


def text_of(value: object) -> str | None:
    """A short, printable text on one line, or None."""
    if not isinstance(value, str):
        return None
    words = " ".join(value[: 4 * _LONGEST].split())
    return "".join(character for character in words if character.isprintable())[:_LONGEST] or None


def texts_of(value: object) -> list[str]:
    """The texts of a text or a list."""
    items = list(value) if isinstance(value, (list, tuple)) else [value]
    return [text for text in map(text_of, items[:_MOST]) if text is not None]


def objects_of(value: object) -> list[dict[str, Any]]:
    """The objects of a list."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []
