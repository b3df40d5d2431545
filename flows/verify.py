"""``verify``: a file, made here or elsewhere, against the checkpoint it is said to come from."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..converters.families import FRONT_ENDS, family_for
from ..converters.front_end import front_end_of
from ..converters.mapping import build, parameters, untransformed
from ..converters.recorded import read_manifest
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import UsageError
from ..core.progress import Progress, silent
from ..core.reading import open_checkpoint
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile, open_gguf
from ..quant.importance import made_with_importance
from ..verify.comparison import (
    How,
    Subject,
    built_in_windows,
    cost,
    logits_part,
    provenance,
    read_reference,
    shows_gelu_share,
    text_windows,
)
from ..verify.front_end import with_front_end_findings
from ..verify.gates import file_type, gate_for, mislabelled
from ..verify.metadata import check_metadata
from ..verify.proof import LogitsPart, MetadataPart, Proof, verdict_of
from ..verify.provenance import (
    CheckpointHashes,
    changed_after_conversion,
    evidence,
    same_tools,
    same_vocabulary_tools,
)
from ..verify.remarks import remarks
from ..verify.same_model import refuse_other_model
from ..verify.sample_text import LONG
from ..verify.tokens import check_tokens
from ..verify.weights import check_weights
from ..vocab.expected import expected_model
from ..vocab.sources import read_source
from .verify_onnx import verify_onnx


def verify(
    artifact: str | Path,
    against: str | Path,
    *,
    texts: Sequence[str] | None = None,
    tokens: int | None = None,
    window: int | None = None,
    gates: Mapping[str, float] | None = None,
    diagnose: bool | None = None,
    ignore_manifest: bool = False,
    front_end: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
) -> Proof:
    """Hold a GGUF file against the checkpoint folder it was made from: tokens, metadata, weights, logits.

    A folder of ONNX files is held against it by flows/verify_onnx.py; it knows neither ``diagnose`` nor
    ``front_end`` (UsageError).

    ``texts`` (default: some thousand tokens of built-in Korean and English) are read in windows of ``window``
    tokens, at most ``tokens`` of each. ``gates`` maps a type (or ``""``, the file's own) to another limit.
    ``diagnose`` looks for the first layer that departs; None: only where the logits fail. ``announce`` is
    told what it will take. ``front_end`` is a GBST model's second file, where it is not beside the artifact.
    However wrong the file is, the answer is a Proof; KconvError is raised for what cannot be compared at all:
    a damaged header, another model, a body without its front end, a checkpoint that has changed since the
    conversion (unless ``ignore_manifest``), a text that is too short.
    """
    begun = time.monotonic()
    options = _options(texts, tokens, window, gates, diagnose, ignore_manifest)
    if front_end is not None:
        options["front_end"] = str(front_end)
    how = How(
        gates or {},
        diagnose,
        threads or available_cores(),
        progress,
        announce,
        None if front_end is None else Path(front_end),
    )
    if Path(artifact).is_dir():
        if diagnose or front_end is not None:
            raise UsageError("a diagnosis and a front end are for GGUF files, not for ONNX folders")
        return verify_onnx(
            Path(artifact),
            Path(against),
            texts=texts,
            tokens=tokens,
            window=window,
            how=how,
            options=options,
            ignore_manifest=ignore_manifest,
        )
    with open_gguf(Path(artifact)) as file:
        manifest = None if ignore_manifest else read_manifest(file.path)
        checkpoint = open_checkpoint(against)
        hashes = CheckpointHashes(
            file.path, manifest, checkpoint, file.paths
        )  # first of all: what has changed
        subject = _subject(file, checkpoint, manifest)
        # nonsense is refused before any work, and so is a body without its front end
        gate = gate_for(file_type(file.header), gelu=subject.family.gelu, overrides=how.gates)
        front_end_of(FRONT_ENDS, file.path, file.header.metadata, how.front_end)
        windows = _windows(subject, texts, tokens, window)
        announce(cost(subject, windows, 1, passes=1 + shows_gelu_share(subject, gate, how)))
        with hashes:
            proof = _without_logits(file, subject, manifest, texts or (), how)
            told = evidence(
                provenance(file, subject, windows, texts, how.front_end), hashes, options, progress
            )
        read = partial(read_reference, subject, how)
        logits = logits_part(file, subject, read, windows, proof.weights.tensors, how)
    notes = remarks(logits, len(subject.vocab.tokens))
    return replace(proof, logits=logits, provenance=told, notes=notes, seconds=time.monotonic() - begun)


def _options(
    texts: Sequence[str] | None,
    tokens: int | None,
    window: int | None,
    gates: Mapping[str, float] | None,
    diagnose: bool | None,
    ignore_manifest: bool,
) -> dict[str, Any]:
    """What was asked for, gates as they are written on a command line; ``texts`` is how many were given."""
    return {
        "texts": len(texts or ()),
        "tokens": tokens,
        "window": window,
        "gates": [f"{name}={limit!r}" if name else repr(limit) for name, limit in (gates or {}).items()],
        "diagnose": diagnose,
        "ignore_manifest": ignore_manifest,
    }


def _subject(file: GgufFile, checkpoint: Checkpoint, manifest: Mapping[str, Any] | None) -> Subject:
    """The checkpoint as it should be in the file; refuses a file of another model before any work."""
    family = family_for(checkpoint.config)
    model = build(family, checkpoint)
    refuse_other_model(file, model)
    source = read_source(checkpoint)
    model = expected_model(model, checkpoint, source, file.header, manifest)
    return Subject(checkpoint, family, model, source)


def _windows(
    subject: Subject, texts: Sequence[str] | None, tokens: int | None, window: int | None
) -> list[Window]:
    if texts is None:
        return built_in_windows(subject, LONG, tokens=tokens, window=window)
    return text_windows(subject, texts, tokens=tokens, window=window)


def _without_logits(
    file: GgufFile,
    subject: Subject,
    manifest: Mapping[str, Any] | None,
    texts: Sequence[str],
    how: How,
) -> Proof:
    """The three parts for which nothing has to be computed."""
    return Proof(
        artifact=file.path,
        checkpoint=subject.checkpoint.folder,
        type=file_type(file.header),
        arch=subject.model.arch,
        parameters=parameters(subject.model),
        tokens=check_tokens(
            file.path,
            file.header,
            subject.source,
            subject.vocab,
            texts,
            strict=same_vocabulary_tools(manifest),
            allow_mismatch=_mismatch_allowed(manifest),
        ),
        metadata=_metadata(file, subject, manifest, how),
        weights=check_weights(
            file,
            subject.model,
            strict=same_tools(manifest) and not made_with_importance(file.header.metadata),
            originals=untransformed(subject.family, subject.checkpoint),
            threads=how.threads,
            progress=how.progress,
        ),
        logits=LogitsPart("not run"),
    )


def _metadata(file: GgufFile, subject: Subject, manifest: Mapping[str, Any] | None, how: How) -> MetadataPart:
    """The part with remarks on a file that is not what it, or its manifest, says it is."""
    part, remark = check_metadata(file.header, subject.model), mislabelled(file.header)
    part = with_front_end_findings(part, file, subject.family, subject.checkpoint, how.front_end)
    findings = (*part.findings, *((remark,) if remark else ()))
    if manifest is not None:
        findings += changed_after_conversion(file.header, manifest)
    return replace(part, verdict=verdict_of(findings), findings=findings)


def _mismatch_allowed(manifest: Mapping[str, Any] | None) -> bool:
    """Whether whoever converted asked for the nearest vocabulary, of which the proof then only warns."""
    return manifest is not None and manifest["options"].get("allow_tokenizer_mismatch") is True
