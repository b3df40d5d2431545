"""How a conversion runs, and what it returns: files, notes, proofs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..converters.family import AnyFamily
from ..converters.mapping import parameters
from ..converters.results import CompanionFile, Output
from ..core.checkpoint import Checkpoint
from ..core.model import Model, Note
from ..core.outlet import Outlet
from ..core.progress import Progress, silent
from ..verify.findings import Verdict, worst
from ..vocab.parity import Parity
from .observer import UNOBSERVED, Observer

if TYPE_CHECKING:
    from ..verify.proof import Proof
    from .executor import Executor


@dataclass(frozen=True)
class Run:
    """How to run a conversion; none of this changes the files.

    The proof reads ``proof_texts`` instead of the built-in ones, at most ``proof_tokens`` tokens of each.
    ``made`` is called with the finished files, before they are proven, ``planned`` with those to be made, and
    may refuse them, ``opened`` with the checkpoint's family, which it may refuse before any weights are
    fetched. ``rehash`` hashes the source whatever receipts say. ``resume`` goes on with what a run
    for the same files has left that was ended. With ``streamed`` the weights of a checkpoint on the Hub are
    read where they lie. ``executor`` writes the weights of GGUF files in tasks of about ``group_bytes`` of
    the checkpoint (spread.py). ``observer`` is told what becomes known meanwhile. ``work`` is
    the folder in which what is measured is kept for a run that goes on (kept_work.py).
    """

    force: bool = False
    threads: int | None = None
    progress: Progress = silent
    announce: Callable[[str], None] = lambda text: None
    proof_texts: tuple[str, ...] | None = None
    proof_tokens: int | None = None
    made: Callable[[Sequence[Path]], None] = lambda paths: None
    rehash: bool = False
    resume: bool = False
    streamed: bool = False
    planned: Callable[[Sequence[Path]], None] = lambda paths: None
    opened: Callable[[AnyFamily], None] = lambda family: None
    executor: Executor | None = None
    group_bytes: int | None = None
    observer: Observer = UNOBSERVED
    outlet: Outlet | None = None
    work: Path | None = None


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
    proofs: tuple[Proof, ...] = ()
    companions: tuple[CompanionFile, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The gravest verdict of the proofs; ``not run`` where there are none."""
        return worst([proof.verdict for proof in self.proofs])

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


def conversion_of(
    checkpoint: Checkpoint,
    model: Model,
    outputs: Sequence[Output],
    companions: Sequence[CompanionFile],
    parity: Parity,
    proofs: Sequence[Proof],
) -> Conversion:
    """What a conversion did, of what it has made."""
    licence = model.metadata.get("general.license")
    return Conversion(
        checkpoint.folder,
        model.arch,
        parameters(model),
        tuple(outputs),
        parity,
        model.notes,
        None if model.vocab is None else model.vocab.chat_template,
        licence if isinstance(licence, str) else None,
        tuple(proofs),
        tuple(companions),
    )


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
    proof: Proof | None = None

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(self.files.values())

    @property
    def verdict(self) -> Verdict:
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
