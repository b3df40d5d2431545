"""What a conversion is asked for and what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..core.errors import UsageError
from ..core.model import MetadataValue, Note
from ..core.progress import Progress, silent
from ..vocab.parity import Parity

Scope = Literal["off", "quick", "full"]


def scope_of(verify: bool | Scope) -> Scope:
    """What ``verify`` asks for: True is quick, False off. Raises UsageError."""
    if isinstance(verify, bool):
        return "quick" if verify else "off"
    if verify not in ("off", "quick", "full"):
        raise UsageError(f"verify is {verify!r}, expected quick, full or off")
    return verify


class Proven(Protocol):
    """What a conversion needs to know of a proof (kconv.verify.Proof, which lives one room further up)."""

    @property
    def type(self) -> str:
        """The file's type."""
        ...

    @property
    def verdict(self) -> str:
        """``passed``, ``warned``, ``failed``, ``not run``, or ``not decided`` where a process died."""
        ...

    @property
    def cause(self) -> str | None:
        """What is wrong first of all, in a sentence."""
        ...

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        ...

    def to_manifest(self) -> dict[str, Any]:
        """What of it stands in the manifest."""
        ...


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

    def to_manifest(self) -> dict[str, Any]:
        """As plain values; of files only the names, not where they lie on this machine."""
        values = asdict(self)
        values["imatrix"] = None if self.imatrix is None else Path(self.imatrix).name
        values["calibrate"] = [Path(path).name for path in self.calibrate]
        return values


@dataclass(frozen=True)
class Run:
    """How to go about it; nothing of this shows in the files.

    The proof reads ``proof_texts`` instead of the built-in ones, at most ``proof_tokens`` tokens of each.
    ``made`` is told which files are whole, before they are proven.
    """

    force: bool = False
    threads: int | None = None
    progress: Progress = silent
    announce: Callable[[str], None] = lambda text: None
    proof_texts: tuple[str, ...] | None = None
    proof_tokens: int | None = None
    made: Callable[[Sequence[Path]], None] = lambda paths: None


@dataclass(frozen=True)
class Output:
    """One file made, and what stands beside it.

    ``bytes`` is the whole file's size, ``formats`` the number of weights in each format. ``parts`` are the
    files where there are several; then ``path`` is the first and ``bytes`` the size of all.
    """

    path: Path
    type: str
    bytes: int
    bits_per_weight: float
    formats: tuple[tuple[str, int], ...]
    manifest: Path
    modelfile: Path | None = None
    parts: tuple[Path, ...] = ()

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
        }


@dataclass(frozen=True)
class Beside:
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


@dataclass(frozen=True)
class Conversion:
    """What a conversion did; the fields are those of ``--json``.

    ``proofs`` go with ``outputs``, and are none where the proof was switched off. ``companions`` are files
    that all outputs need beside them.
    """

    source: Path
    arch: str
    parameters: int
    outputs: tuple[Output, ...]
    parity: Parity
    notes: tuple[Note, ...]
    chat_template: str | None
    license: str | None
    proofs: tuple[Proven, ...] = ()
    companions: tuple[Beside, ...] = ()

    @property
    def verdict(self) -> str:
        """The gravest verdict of the proofs; ``not run`` where there are none."""
        found = {proof.verdict for proof in self.proofs}
        return next(
            (verdict for verdict in ("failed", "not decided", "warned", "passed") if verdict in found),
            "not run",
        )

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "source": str(self.source),
            "architecture": self.arch,
            "parameters": self.parameters,
            "outputs": [output.to_json() for output in self.outputs],
            "companions": [beside.to_json() for beside in self.companions],
            "tokens": self.parity.to_json(),
            "verdict": self.verdict,
            "proofs": [proof.to_json() for proof in self.proofs],
            "notes": [asdict(note) for note in self.notes],
            "chat_template": self.chat_template,
            "license": self.license,
        }
