"""What a conversion to ONNX is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .folder import Layout


@dataclass(frozen=True)
class OnnxOptions:
    """What the caller asked for."""

    type: str
    layout: Layout
    accuracy_level: int
    allow_nan: bool
    chat_template: str | None = None
    drop_extra_tokens: bool = False

    def to_manifest(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "type": self.type,
            "layout": self.layout.name,
            "accuracy_level": self.accuracy_level,
            "allow_nan": self.allow_nan,
            "chat_template": self.chat_template,
            "drop_extra_tokens": self.drop_extra_tokens,
        }
