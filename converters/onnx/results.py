"""What a conversion to ONNX is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...core.model import Note
from ..results import Proven
from .folder import Layout


@dataclass(frozen=True)
class OnnxOptions:
    """What the caller asked for."""

    type: str
    layout: Layout
    accuracy_level: int
    allow_nan: bool
    chat_template: str | None = None

    def to_manifest(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "type": self.type,
            "layout": self.layout.name,
            "accuracy_level": self.accuracy_level,
            "allow_nan": self.allow_nan,
            "chat_template": self.chat_template,
        }


@dataclass(frozen=True)
class OnnxConversion:
    """What a conversion did; the fields are those of ``--json``.

    ``path`` is the folder, ``files`` the sizes of what lies in it (without the manifest), ``formats`` the
    number of weights in each format.
    """

    source: Path
    arch: str
    parameters: int
    path: Path
    type: str
    bits_per_weight: float
    formats: Mapping[str, int]
    files: Mapping[str, int]
    notes: tuple[Note, ...]
    license: str | None
    proof: Proven | None = None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())

    @property
    def verdict(self) -> str:
        """The proof's; ``not run`` where there is none."""
        return "not run" if self.proof is None else self.proof.verdict

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "source": str(self.source),
            "architecture": self.arch,
            "parameters": self.parameters,
            "path": str(self.path),
            "type": self.type,
            "bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "formats": dict(self.formats),
            "files": dict(self.files),
            "notes": [asdict(note) for note in self.notes],
            "license": self.license,
            "verdict": self.verdict,
            "proof": None if self.proof is None else self.proof.to_json(),
        }
