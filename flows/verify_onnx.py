"""``verify`` for an ONNX folder: tokenizer, settings, weights, and logits, at once and token by token."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..converters.families import family_for
from ..converters.mapping import build, parameters
from ..converters.recorded import RecordedFile, read_manifest, written_files
from ..converters.targets import manifest_path
from ..core.checkpoint import Checkpoint
from ..core.errors import ChildDied, InputError, MappingError
from ..core.model import Model
from ..core.reading import open_checkpoint
from ..core.windows import Window
from ..runtimes.candidate import CandidateFailure
from ..runtimes.onnx_candidate import OnnxCandidate, stepped
from ..runtimes.onnx_folder import OnnxFolder, open_onnx
from ..verify.comparison import (
    How,
    Subject,
    built_in_windows,
    compared_with,
    cost,
    read_reference,
    text_windows,
)
from ..verify.gates import gate_for, judge
from ..verify.logits import Read, broken, compare, judged
from ..verify.measurements import Figures
from ..verify.onnx_parts import check_folder_settings, check_folder_tokens
from ..verify.onnx_weights import check_folder_weights
from ..verify.proof import Finding, Gate, LogitsPart, Proof, verdict_of
from ..verify.provenance import CheckpointHashes, changed_files, evidence
from ..verify.remarks import remarks
from ..verify.sample_text import LONG
from ..vocab.context import read_context
from ..vocab.own_vocabulary import own_vocabulary
from ..vocab.settle import EMBEDDING
from ..vocab.sources import read_source
from ..vocab.tokenizer import Source

RUNTIME = "onnxruntime on the CPU: windows at once, token by token through the cache, and in padded batches"
_BEFORE_STEPS = "token by token, through the cache: "
_BEFORE_BATCHES = "in a padded batch: "


def verify_onnx(
    artifact: Path,
    against: Path,
    *,
    texts: Sequence[str] | None = None,
    tokens: int | None = None,
    window: int | None = None,
    amounts: Mapping[str, int] = LONG,
    how: How,
    options: Mapping[str, Any] = {},
    ignore_manifest: bool = False,
    just_made: bool = False,
) -> Proof:
    """Hold an ONNX folder against the checkpoint it was made from; arguments as of ``verify``.

    ``amounts`` are the tokens read of each built-in text. ``just_made``: a conversion has hashed everything
    itself a moment ago. Raises KconvError for what cannot be compared.
    """
    begun = time.monotonic()
    folder, checkpoint = open_onnx(artifact), open_checkpoint(against)
    written, hashes = _recorded(folder, checkpoint, ignored=ignore_manifest or just_made)
    subject = _subject(folder, checkpoint)
    gate = gate_for(folder.type, overrides=how.gates)
    if texts is None:
        windows = built_in_windows(subject, amounts, tokens=tokens, window=window)
    else:
        windows = text_windows(subject, texts, tokens=tokens, window=window)
    how.announce(cost(subject, windows, 1, passes=2))
    told = {
        "artifact": {"file": folder.path.name, "bytes": folder.bytes},
        **compared_with(subject, windows, texts, RUNTIME, ("onnxruntime",)),
    }
    with contextlib.nullcontext() if just_made else hashes:
        proof = Proof(
            artifact=folder.path,
            checkpoint=checkpoint.folder,
            type=folder.type,
            arch=subject.model.arch,
            parameters=parameters(subject.model),
            tokens=check_folder_tokens(folder, checkpoint, subject.source, texts or ()),
            metadata=check_folder_settings(folder, checkpoint, subject.model),
            weights=check_folder_weights(
                folder, checkpoint, subject.family, subject.model, threads=how.threads, progress=how.progress
            ),
            logits=LogitsPart("not run"),
            provenance=told if just_made else evidence(told, hashes, options, how.progress),
        )
    changed = changed_files(folder.path, written, hashes.artifact_sha256)
    findings = (*proof.metadata.findings, *changed)
    metadata = replace(proof.metadata, verdict=verdict_of(findings), findings=findings)
    logits = onnx_logits(folder, subject, windows, gate, how)
    notes, seconds = remarks(logits, len(subject.source.tokens)), time.monotonic() - begun
    return replace(proof, metadata=metadata, logits=logits, notes=notes, seconds=seconds)


def onnx_logits(
    folder: OnnxFolder, subject: Subject, windows: Sequence[Window], gate: Gate, how: How
) -> LogitsPart:
    """The folder's logits of whole windows, and of the beginnings of some, held to the gate in three ways.

    A cache that is wrong shows only where tokens are read one by one, a mask that is only in padded batches.
    """
    read, few = partial(read_reference, subject, how), stepped(windows)
    once = functools.cache(read)  # both of the other ways take the same few windows
    try:
        with OnnxCandidate(folder, threads=how.threads) as candidate:
            part = judged(compare(read, candidate, windows, how.progress), gate, windows, subject.source)
            stepwise, slow = _otherwise(candidate.token_by_token(), once, few, gate, how, _BEFORE_STEPS)
            padded, wide = _otherwise(candidate.in_batches(), once, few, gate, how, _BEFORE_BATCHES)
    except (CandidateFailure, ChildDied) as failure:
        return broken(failure, "onnxruntime")
    findings = (*part.findings, *slow, *wide)
    return replace(part, verdict=verdict_of(findings), findings=findings, stepwise=stepwise, padded=padded)


def _otherwise(
    candidate: OnnxCandidate, read: Read, windows: Sequence[Window], gate: Gate, how: How, before: str
) -> tuple[Figures | None, list[Finding]]:
    """The figures of another way of reading, if it can be done at all, and findings that say which way."""
    try:
        figures = compare(read, candidate, windows, how.progress).figures()
    except CandidateFailure as failure:
        return None, [Finding("onnxruntime", f"{before}{failure}")]
    return figures, [replace(each, message=before + each.message) for each in judge(figures, gate)]


def _recorded(
    folder: OnnxFolder, checkpoint: Checkpoint, *, ignored: bool
) -> tuple[tuple[RecordedFile, ...], CheckpointHashes]:
    """The files the folder's manifest names, unless it is ``ignored``, and the hashes to hold against it."""
    manifest = None if ignored else read_manifest(folder.path)
    written = () if manifest is None else written_files(manifest, manifest_path(folder.path))
    there = [path for file in written if (path := folder.path / file.name).is_file()]
    parts = list(dict.fromkeys([*folder.files, *there]))
    return written, CheckpointHashes(folder.path, manifest, checkpoint, parts)


def _subject(folder: OnnxFolder, checkpoint: Checkpoint) -> Subject:
    """What the folder is measured against. Raises InputError where only one of the two has an encoder."""
    family = family_for(checkpoint.config)
    if family.encoder_decoder != (folder.encoder is not None):
        kinds = ("has no encoder", "has an encoder")
        own, given = kinds[folder.encoder is not None], kinds[family.encoder_decoder]
        raise InputError(
            f"{folder.path} {own}, {checkpoint.folder} ({family.title}) {given}",
            hint="give the checkpoint the folder was made from with --against",
        )
    model, source = build(family, checkpoint, "ONNX"), read_source(checkpoint)
    return Subject(checkpoint, family, _with_vocab(model, checkpoint, source), source)


def _with_vocab(model: Model, checkpoint: Checkpoint, source: Source) -> Model:
    """The model with its vocabulary: what stands before a text, how many tokens there are."""
    try:
        rows = model.tensor(EMBEDDING).rows
    except KeyError as error:
        raise MappingError(f"the model has no tensor {EMBEDDING}") from error
    context = read_context(checkpoint, arch=model.arch, rows=rows)
    vocab, _ = own_vocabulary(source, context)
    return replace(model, vocab=vocab)
