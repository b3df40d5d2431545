"""``verify`` for an ONNX folder: tokenizer, settings, weights, and logits, at once and token by token."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..converters.architectures import recipe_for
from ..converters.recipe import build, parameters
from ..core.checkpoint import Checkpoint
from ..core.errors import MappingError
from ..core.model import Model
from ..core.reading import open_checkpoint
from ..vocab.adapters import enabled_adapters
from ..vocab.candidates import candidates
from ..vocab.context import read_context
from ..vocab.settle import EMBEDDING, adapted
from ..vocab.sources import read_source
from ..vocab.tokenizer import Source
from .candidate import CandidateFailure
from .comparison import How, Subject, built_in_windows, compared_with, cost, read_reference, text_windows
from .gates import gate_for, judge
from .logits import broken, compare, judged
from .onnx_candidate import OnnxCandidate, stepped
from .onnx_folder import OnnxFolder, open_onnx
from .onnx_parts import check_folder_settings, check_folder_tokens
from .onnx_weights import check_folder_weights
from .proof import Finding, Gate, LogitsPart, Proof, verdict_of
from .remarks import remarks
from .sample_text import LONG
from .windows import Window

RUNTIME = "onnxruntime on the CPU: windows read at once, and token by token through the cache"
_BEFORE_STEPS = "token by token, through the cache: "


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
) -> Proof:
    """Hold an ONNX folder against the checkpoint it was made from; arguments as of ``verify``.

    ``amounts`` are the tokens read of each built-in text. Raises KconvError for what cannot be compared.
    """
    begun = time.monotonic()
    folder = open_onnx(artifact)
    checkpoint = open_checkpoint(against)
    recipe = recipe_for(checkpoint.config)
    model, source = build(recipe, checkpoint), read_source(checkpoint)
    subject = Subject(checkpoint, recipe, _with_vocab(model, checkpoint, source), source)
    gate = gate_for(folder.type, overrides=how.gates)
    if texts is None:
        windows = built_in_windows(subject, amounts, tokens=tokens, window=window)
    else:
        windows = text_windows(subject, texts, tokens=tokens, window=window)
    how.announce(cost(subject, windows, 1, passes=2))
    proof = Proof(
        artifact=folder.path,
        checkpoint=checkpoint.folder,
        type=folder.type,
        arch=model.arch,
        parameters=parameters(model),
        tokens=check_folder_tokens(folder, checkpoint, source, texts or ()),
        metadata=check_folder_settings(folder, checkpoint),
        weights=check_folder_weights(folder, checkpoint, threads=how.threads, progress=how.progress),
        logits=onnx_logits(folder, subject, windows, gate, how),
        provenance={
            "artifact": {"file": folder.path.name, "bytes": folder.bytes},
            **compared_with(subject, windows, texts, RUNTIME, ("onnxruntime",)),
            "options": dict(options),
        },
    )
    notes = remarks(proof.logits, len(source.tokens))
    return replace(proof, notes=notes, seconds=time.monotonic() - begun)


def onnx_logits(
    folder: OnnxFolder, subject: Subject, windows: Sequence[Window], gate: Gate, how: How
) -> LogitsPart:
    """The folder's logits of whole windows, and of the beginnings of some read token by token.

    A cache that is wrong shows in the second only. Both are held to the gate.
    """
    read = partial(read_reference, subject, how)
    try:
        with OnnxCandidate(folder, threads=how.threads) as candidate:
            measure = compare(read, candidate, windows, how.progress)
            stepwise = compare(read, candidate.token_by_token(), stepped(windows), how.progress)
    except CandidateFailure as failure:
        return broken(failure, "onnxruntime")
    part, figures = judged(measure, gate, windows, subject.source), stepwise.figures()
    found = [replace(each, message=_BEFORE_STEPS + each.message) for each in judge(figures, gate)]
    findings: tuple[Finding, ...] = (*part.findings, *found)
    return replace(part, verdict=verdict_of(findings), findings=findings, stepwise=figures)


def _with_vocab(model: Model, checkpoint: Checkpoint, source: Source) -> Model:
    """The model with its vocabulary: what stands before a text, how many tokens there are."""
    try:
        rows = model.tensor(EMBEDDING).rows
    except KeyError as error:
        raise MappingError(f"the model has no tensor {EMBEDDING}") from error
    context = read_context(checkpoint, arch=model.arch, rows=rows)
    vocab, _ = adapted(next(iter(candidates(source))), context, enabled_adapters())
    return replace(model, vocab=vocab)
