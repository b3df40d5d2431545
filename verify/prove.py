"""The proof, whatever is proven and whoever asks: four parts, cheapest first, and where they come from."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from ..converters.checkpoint_hashes import CheckpointHashes
from ..converters.circumstances import circumstances
from ..converters.mapping import parameters
from ..core.windows import Window
from ..reference.magnitudes import Flow
from ..reference.noted import NotedReads
from ..runtimes.half_precision import HalfPrecision
from .embeddings_part import EmbeddingsPart
from .half_precision import with_half_precision
from .inputs import Expected, Texts, VerifyOptions, read_reference
from .logits import Read
from .proof import (
    Finding,
    LogitsPart,
    MetadataPart,
    Part,
    Proof,
    RuntimePart,
    TensorError,
    TokensPart,
    WeightsPart,
    verdict_of,
)
from .provenance import evidence
from .remarks import remarks


class Artifact(Protocol):
    """A file or folder that is proven, and how each part of that is done (gguf_artifact, onnx_artifact).

    However wrong the artifact is, a part says so in its findings; where a process dies that was to measure
    it, the part is not decided. KconvError is raised for what cannot be compared at all.
    """

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def type(self) -> str:
        """Its type, as gates know it."""
        ...

    def passes(self, expected: Expected, options: VerifyOptions) -> int:
        """How often the checkpoint will be read in fp32; refuses what makes no sense before any work."""
        ...

    def tokens(self, expected: Expected, texts: Sequence[str]) -> TokensPart:
        """Token ids of built-in texts and of ``texts``, and the vocabulary."""
        ...

    def metadata(self, expected: Expected, options: VerifyOptions) -> MetadataPart:
        """Everything a runtime reads besides weights and vocabulary."""
        ...

    def weights(self, expected: Expected, options: VerifyOptions) -> WeightsPart:
        """Every tensor."""
        ...

    def provenance(
        self, expected: Expected, windows: Sequence[Window], texts: Texts, options: VerifyOptions
    ) -> dict[str, Any]:
        """What is compared, and with what; ``texts`` None means the built-in ones."""
        ...

    def changed(self, digests: Mapping[str, str]) -> tuple[Finding, ...]:
        """Remarks on what is not as it was written; ``digests`` are SHA-256 by name, where they are known."""
        ...

    def computed(
        self,
        expected: Expected,
        read: Read,
        windows: Sequence[Window],
        tensors: Sequence[TensorError],
        options: VerifyOptions,
    ) -> tuple[RuntimePart, LogitsPart | EmbeddingsPart]:
        """What its runtime computes of its own weights, and its logits (or an encoder's embeddings) against
        those of ``read``.

        ``tensors`` are what was found of its weights.
        """
        ...

    def halves(self, expected: Expected, flows: Mapping[str, Flow]) -> HalfPrecision | None:
        """How large what it computes in half precision gets, by the reference's ``flows``."""
        ...


def prove(
    expected: Expected,
    artifact: Artifact,
    windows: Sequence[Window],
    options: VerifyOptions,
    *,
    texts: Texts = None,
    scope: Literal["quick", "full"] = "full",
    read: Read | None = None,
    hashes: CheckpointHashes | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Proof:
    """Hold ``artifact`` against what is ``expected`` of it: tokens, metadata, weights, runtime, logits.

    ``windows`` are of ``texts``, or of the built-in ones (None). ``read`` gives the checkpoint's logits where
    they have been computed already. ``hashes`` are computed during the first parts and go into the provenance
    with the ``recorded`` options; conversions, which hash by themselves, pass neither. Raises KconvError for
    what cannot be compared: see the parts.
    """
    begun = time.monotonic()
    options = replace(options, part=_once(options.part))
    with contextlib.nullcontext() if hashes is None else hashes:
        options.progress("vocabulary", 0, 0)
        tokens = artifact.tokens(expected, texts or ())
        options.part("tokens", tokens)
        metadata = artifact.metadata(expected, options)
        weights = artifact.weights(expected, options)
        provenance = artifact.provenance(expected, windows, texts, options)
        if hashes is not None:
            provenance = evidence(provenance, hashes, recorded or {}, options.progress)
    digests = {} if hashes is None else {name: file.sha256 for name, file in hashes.artifact.items()}
    changed = artifact.changed(digests)
    findings = (*metadata.findings, *changed)
    metadata = replace(metadata, verdict=verdict_of(findings), findings=findings)
    options.part("metadata", metadata)
    options.part("weights", weights)
    reading = NotedReads(read or partial(read_reference, expected, options), windows)
    runtime, measured = artifact.computed(expected, reading, windows, weights.tensors, options)
    halves, hidden = artifact.halves(expected, reading.flows), artifact.path.is_dir()
    options.part("runtime", runtime)
    logits, embeddings = LogitsPart("not run"), None
    if isinstance(measured, EmbeddingsPart):
        embeddings = with_half_precision(measured, halves, hidden)
    else:
        logits = with_half_precision(measured, halves, hidden)
    options.part("logits" if embeddings is None else "embeddings", embeddings or logits)
    ran = measured.figures is not None and not hidden
    return Proof(
        artifact=artifact.path,
        checkpoint=expected.checkpoint.folder,
        type=artifact.type,
        arch=expected.model.arch,
        parameters=parameters(expected.model),
        tokens=tokens,
        metadata=metadata,
        weights=weights,
        logits=logits,
        runtime=runtime,
        embeddings=embeddings,
        scope=scope,
        provenance=provenance,
        notes=remarks(logits, len(expected.vocab.tokens)),
        seconds=time.monotonic() - begun,
        circumstances=circumstances(expected.checkpoint, llama_cpp=ran),
    )


def _once(tell: Callable[[str, Part], None]) -> Callable[[str, Part], None]:
    """``tell``, of each part the first time only: what runs an artifact tells of its runtime early."""
    told: set[str] = set()

    def first(name: str, part: Part) -> None:
        if name not in told:
            told.add(name)
            tell(name, part)

    return first
