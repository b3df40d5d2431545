"""What a conversion is asked for, and the files it makes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core.errors import UsageError
from ..core.model import MetadataValue
from ..quant.wish import Wanted

if TYPE_CHECKING:
    from ..quant.policy_file import Choice

Scope = Literal["off", "quick", "full"]
STRENGTH = {"off": 0, "quick": 1, "full": 2}
"""Of two scopes the one with the larger number proves more."""


def scope_of(verify: bool | Scope) -> Scope:
    """What ``verify`` asks for: True is quick, False off. Raises UsageError."""
    if isinstance(verify, bool):
        return "quick" if verify else "off"
    if verify not in ("off", "quick", "full"):
        raise UsageError(f"verify is {verify!r}, expected quick, full or off")
    return verify


@dataclass(frozen=True)
class Options:
    """What the caller asked for; goes into the manifest as it is."""

    types: tuple[str, ...] = ("auto",)
    pure: bool = False
    allow_nan: bool = False
    allow_tokenizer_mismatch: bool = False
    disabled_adapters: tuple[str, ...] = ()
    chat_template: str | None = None
    verify: Scope = "quick"
    keep_wo: bool = False
    tensor_types: tuple[str, ...] = ()
    output_type: str | None = None
    embedding_type: str | None = None
    imatrix: str | None = None
    calibrate: tuple[str, ...] = ()
    split_max_size: str | None = None
    drop_extra_tokens: bool = False
    words_as_text: bool = False
    optimize: bool = False
    chosen: Wanted = field(default_factory=Wanted)

    @property
    def needs_checkpoint(self) -> bool:
        """Whether the checkpoint itself is to read texts: for its proof, or to learn importance."""
        return self.verify != "off" or bool(self.calibrate)

    def to_manifest(self) -> dict[str, Any]:
        """As plain values; of files only the names, not where they lie on this machine."""
        values = asdict(self)
        values["imatrix"] = None if self.imatrix is None else Path(self.imatrix).name
        values["calibrate"] = [Path(path).name for path in self.calibrate]
        del values["chosen"]
        if self.chosen:
            values |= self.chosen.to_manifest()
        return values


@dataclass(frozen=True)
class Output:
    """One file made, and what stands beside it.

    ``bytes`` is the whole file's size, ``formats`` the number of weights in each format. ``parts`` are the
    files where there are several; then ``path`` is the first and ``bytes`` the size of all. ``choice`` says
    how its formats were chosen, where no recipe has, and ``policy`` is the file that keeps it.
    """

    path: Path
    type: str
    bytes: int
    bits_per_weight: float
    formats: tuple[tuple[str, int], ...]
    manifest: Path
    modelfile: Path | None = None
    parts: tuple[Path, ...] = ()
    choice: Choice | None = None
    policy: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file of the model itself."""
        return self.parts or (self.path,)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "path": str(self.path),
            "type": self.type,
            "bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "formats": dict(self.formats),
            "manifest": str(self.manifest),
            "modelfile": None if self.modelfile is None else str(self.modelfile),
            "parts": [str(part) for part in self.parts],
            "policy": None if self.policy is None else str(self.policy),
            "choice": None if self.choice is None else self.choice.to_manifest(),
        }


@dataclass(frozen=True)
class CompanionFile:
    """A second file all outputs need; ``kept`` if an earlier conversion had written it already.

    ``keys`` are those by which each output names it, ``weights`` how many it holds, all in f32; ``sha256`` is
    the whole file's.
    """

    path: Path
    arch: str
    bytes: int
    sha256: str
    weights: int
    keys: Mapping[str, MetadataValue]
    kept: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "path": str(self.path),
            "architecture": self.arch,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "weights": self.weights,
            "keys": dict(self.keys),
            "kept": self.kept,
        }
