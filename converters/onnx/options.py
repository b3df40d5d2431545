"""What a conversion to ONNX is asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import UsageError
from ...quant.formats import nearest
from .flavours import STANDARD, Flavour, parse_flavour
from .folder import Layout


@dataclass(frozen=True)
class OnnxOptions:
    """What the caller asked for; codes are chosen by the file ``statistics`` or by those of texts."""

    statistics: str | None = field(default=None, kw_only=True)
    calibrate: tuple[str, ...] = field(default=(), kw_only=True)
    type: str
    layout: Layout
    accuracy_level: int
    allow_nan: bool
    chat_template: str | None = None
    drop_extra_tokens: bool = False
    flavour: Flavour = STANDARD
    halves: bool = False

    def to_manifest(self) -> dict[str, Any]:
        """As plain values; a flavour is new to manifests, and that without one is the standard."""
        flavour = {} if self.flavour == STANDARD else {"flavour": self.flavour.name}
        chosen: dict[str, Any] = (
            {} if self.statistics is None else {"imatrix": self.statistics, "optimize": True}
        )
        if self.calibrate:
            chosen = {"calibrate": [Path(path).name for path in self.calibrate], "optimize": True}
        return {
            **chosen,
            "type": self.type,
            "layout": self.layout.name,
            **flavour,
            **({"activations": "f16"} if self.halves else {}),
            "accuracy_level": self.accuracy_level,
            "allow_nan": self.allow_nan,
            "chat_template": self.chat_template,
            "drop_extra_tokens": self.drop_extra_tokens,
        }


def parse_activations(text: str) -> bool:
    """Whether ``f16`` is asked for; or ``f32``, case ignored. Raises UsageError for anything else."""
    known = {"f32": False, "f16": True}
    if (wanted := text.strip().lower()) not in known:
        raise UsageError(f"unknown type {text!r} for activations", hint=nearest(text, list(known)))
    return known[wanted]


def flavour_for(layout: Layout, name: str | None) -> Flavour:
    """The flavour of that name; None: the one those who use the layout have operators for.

    Raises UsageError for a name that is none.
    """
    return layout.flavour if name is None else parse_flavour(name)
