"""Several types of one checkpoint side by side: what each weighs and what it costs in likeness.

All files are written from one read of the checkpoint and held against one reading of it in fp32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..converters.family import AnyFamily
from ..converters.results import CompanionFile, Options, Output
from ..converters.targets import different_types
from ..core.errors import UsageError
from ..core.model import Note
from ..core.progress import Progress, silent
from ..core.scratch import scratch_folder
from ..quant.policy_file import Choice
from ..quant.published import Band, expected_divergence
from ..verify.measurements import Figures
from ..verify.proof import Proof
from .convert import convert
from .observer import UNOBSERVED, Observer
from .results import Run

TOKENS = 1024
"""Tokens of each of the built-in texts, Korean and English, that are read where nobody says."""


@dataclass(frozen=True)
class ComparedType:
    """One file. ``stock``: llama-quantize's own family, nothing changed in it.

    ``proof`` has the figures; ``path`` is None for a file that was not kept. ``published`` is what others
    measured of the family; ``choice`` says how formats were chosen that no recipe has.
    """

    type: str
    stock: bool
    bytes: int
    bits_per_weight: float
    path: Path | None
    proof: Proof
    published: Band | None = None
    choice: Choice | None = None

    @property
    def figures(self) -> Figures | None:
        """What was measured; None where llama.cpp gave no logits."""
        figures = self.proof.logits.figures
        return figures if figures is not None and figures.positions else None

    @property
    def perplexity_ratio(self) -> tuple[float, float]:
        """Perplexity of the file over the checkpoint's, and its standard error; NaN if not measured."""
        if self.figures is None:
            return math.nan, math.nan
        ratio = math.exp(min(self.figures.log_ratio, 700.0))
        return ratio, ratio * self.figures.log_ratio_error

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        figures = asdict(self.figures) if self.figures else {}
        names = ("kl_mean", "kl_mean_error", "kl_median", "kl_99", "kl_max", "same_top1", "same_top1_error")
        ratio, error = self.perplexity_ratio
        return {
            "type": self.type,
            "stock": self.stock,
            "bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "path": None if self.path is None else str(self.path),
            **{name: figures.get(name) for name in names},
            "perplexity_ratio": ratio,
            "perplexity_ratio_error": error,
            "verdict": self.proof.verdict,
            "cause": self.proof.cause,
            "choice": None if self.choice is None else self.choice.to_manifest(),
            "published_kl": None if self.published is None else self.published.to_json(),
        }


@dataclass(frozen=True)
class Comparison:
    """Types of one checkpoint, in the order asked for.

    ``read`` says which texts were read and by what, ``importance`` names the file or texts
    the types were quantized with.
    """

    source: Path
    arch: str
    parameters: int
    types: tuple[ComparedType, ...]
    companions: tuple[CompanionFile, ...]
    importance: str | None
    read: dict[str, Any]
    notes: tuple[Note, ...]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "source": str(self.source),
            "architecture": self.arch,
            "parameters": self.parameters,
            "types": [each.to_json() for each in self.types],
            "companions": [each.to_json() for each in self.companions],
            "importance": self.importance,
            "read": self.read,
            "notes": [asdict(note) for note in self.notes],
            "seconds": round(self.seconds, 3),
        }


def _refuse_encoder(family: AnyFamily) -> None:
    """Raise UsageError for a checkpoint that predicts nothing: its types are compared where they are made."""
    if family.encoder_only:
        raise UsageError(
            f"kconv compare measures predictions, and {family.title} models write no text",
            hint="kconv to-gguf -q f16,q8_0,q4_k_m says how much the embeddings of each type lose",
        )


def compare(
    source: str | Path,
    output: str | Path | None = None,
    *,
    options: Options,
    texts: Sequence[str] | None = None,
    tokens: int | None = None,
    keep: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
    observer: Observer = UNOBSERVED,
) -> Comparison:
    """Make the types of ``options``, read ``texts`` with each and with the checkpoint, and compare.

    At most ``tokens`` tokens of each text (default: all; of the built-in ones ``TOKENS``). The files go to
    the folder ``output`` if ``keep``, else they take their room there only while this runs. Raises what a
    conversion raises, and UsageError for fewer than two types.
    """
    begun = time.monotonic()
    if output is not None and Path(output).suffix == ".gguf":
        raise UsageError(f"-o {output} is the name of one file, but several are made", hint="give a folder")
    if len(different_types(options)) + len(options.chosen.wishes()) < 2:
        raise UsageError("a comparison needs at least two types", hint="give them with -q q4_0,q4_k_m,q8_0")
    options = replace(options, verify="quick")
    run = Run(
        force,
        threads,
        progress,
        announce,
        proof_texts=None if texts is None else tuple(texts),
        proof_tokens=tokens if texts is not None or tokens is not None else TOKENS,
        opened=_refuse_encoder,
        observer=observer,
    )
    with _place(Path(output or "."), keep=keep) as folder:
        made = convert(source, folder, options, run)
    pairs = zip(made.outputs, made.proofs, strict=True)
    learned_from = [options.imatrix] if options.imatrix is not None else options.calibrate
    return Comparison(
        made.source,
        made.arch,
        made.parameters,
        tuple(_compared(output, proof, options, keep=keep) for output, proof in pairs),
        made.companions if keep else (),
        ", ".join(Path(file).name for file in learned_from) or None,
        {key: made.proofs[0].provenance[key] for key in ("texts", "windows", "runtime", "versions")},
        made.notes,
        time.monotonic() - begun,
    )


def _compared(output: Output, proof: Proof, options: Options, *, keep: bool) -> ComparedType:
    changed = options.pure or options.tensor_types or options.output_type or options.embedding_type
    stock = not (changed or options.keep_wo or ":" in output.type or output.choice)
    return ComparedType(
        output.type,
        stock,
        output.bytes,
        output.bits_per_weight,
        output.path if keep else None,
        proof,
        expected_divergence(output.type) if stock else None,
        output.choice,
    )


@contextmanager
def _place(wanted: Path, *, keep: bool) -> Iterator[Path]:
    """``wanted``, or a folder on the same disk that is gone in the end."""
    if keep:
        yield wanted
        return
    there = next(place for place in (wanted.absolute(), *wanted.absolute().parents) if place.is_dir())
    with scratch_folder("compare", there) as folder:
        yield folder
