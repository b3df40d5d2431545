"""The flavours there are, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ...core.errors import UsageError
from ...quant.formats import nearest
from .contrib import CONTRIB
from .flavour import Flavour
from .standard import STANDARD

FLAVOURS: Mapping[str, Flavour] = MappingProxyType({each.name: each for each in (STANDARD, CONTRIB)})


def parse_flavour(text: str) -> Flavour:
    """The flavour of that name, case ignored. Raises UsageError naming all."""
    flavour = FLAVOURS.get(text.strip().lower())
    if flavour is None:
        raise UsageError(f"unknown flavour {text!r}", hint=nearest(text, list(FLAVOURS)))
    return flavour


__all__ = ["CONTRIB", "FLAVOURS", "STANDARD", "Flavour", "parse_flavour"]
