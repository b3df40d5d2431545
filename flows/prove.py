"""The proof a conversion ends with: one pass over the checkpoint for all files it made."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ..converters.mapping import parameters, untransformed
from ..core.cores import available_cores
from ..core.progress import Progress, silent
from ..core.windows import Window
from ..quant.gguf_weights import GgufFile, open_gguf
from ..quant.importance import Importance
from ..reference.model import Reading
from ..verify.comparison import How, Subject, cost, logits_part, proof_windows, provenance, read_reference
from ..verify.front_end import with_front_end_findings
from ..verify.gates import file_type
from ..verify.logits import Read
from ..verify.metadata import check_metadata
from ..verify.proof import Finding, LogitsPart, MetadataPart, Proof, TokensPart, WeightsPart
from ..verify.remarks import remarks
from ..verify.tokens import check_tokens, tokens_part
from ..verify.weights import check_weights
from ..vocab.parity import Parity
from ..vocab.tokenizer import Source
from .calibrate import Calibration


def prove(
    subject: Subject,
    files: Sequence[Path],
    parity: Parity,
    *,
    scope: Literal["quick", "full"],
    importance: Importance | None = None,
    calibration: Calibration | None = None,
    proof_texts: Sequence[str] | None = None,
    proof_tokens: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
) -> tuple[Proof, ...]:
    """Hold files just made against their checkpoint; ``subject`` has the model that was to be written.

    ``quick`` takes the tokens' parity as the conversion measured it and leaves the weights out, which this
    process has just encoded; ``full`` does again all that ``verify`` does. ``importance`` is what the files
    were quantized with; ``calibration`` may have read the windows already. ``proof_texts`` are read instead
    of the built-in ones, at most ``proof_tokens`` of each. Raises KconvError where reading the checkpoint
    fails.
    """
    how = How(
        threads=threads or available_cores(), progress=progress, announce=announce, gelu_share=scope == "full"
    )
    windows = proof_windows(subject, scope, proof_texts, proof_tokens)
    announce(cost(subject, windows, len(files)))

    @functools.cache  # once for all files
    def read(asked: tuple[Window, ...]) -> Reading:
        known = calibration is not None and calibration.windows == asked
        return calibration.reading if calibration and known else read_reference(subject, how, asked)

    return tuple(
        _proof(path, subject, parity, read, windows, proof_texts, scope, importance, how) for path in files
    )


def _proof(
    path: Path,
    subject: Subject,
    parity: Parity,
    read: Read,
    windows: Sequence[Window],
    texts: Sequence[str] | None,
    scope: Literal["quick", "full"],
    importance: Importance | None,
    how: How,
) -> Proof:
    begun = time.monotonic()
    with open_gguf(path) as file:
        tokens, weights = _tokens_measured(parity, subject.source), WeightsPart("not run")
        if scope == "full":
            tokens = check_tokens(
                path,
                file.header,
                subject.source,
                subject.vocab,
                strict=True,
                allow_mismatch=parity.verdict == "mismatch",
            )
            if tokens.parity is not None:  # the manifest names the vocabulary, not the file
                parity = replace(tokens.parity, candidate=parity.candidate)
                tokens = replace(tokens, parity=parity)
            weights = check_weights(
                file,
                subject.model,
                strict=True,
                importance=importance,
                originals=untransformed(subject.family, subject.checkpoint),
                threads=how.threads,
                progress=how.progress,
            )
        proof = Proof(
            artifact=path,
            checkpoint=subject.checkpoint.folder,
            type=file_type(file.header),
            arch=subject.model.arch,
            parameters=parameters(subject.model),
            tokens=tokens,
            metadata=_metadata(file, subject),
            weights=weights,
            logits=LogitsPart("not run"),
            scope=scope,
            provenance=provenance(file, subject, windows, texts),
        )
        logits = logits_part(file, subject, read, windows, weights.tensors, how)
    notes = remarks(logits, len(subject.vocab.tokens))
    return replace(proof, logits=logits, notes=notes, seconds=time.monotonic() - begun)


def _metadata(file: GgufFile, subject: Subject) -> MetadataPart:
    part = check_metadata(file.header, subject.model)
    return with_front_end_findings(part, file, subject.family, subject.checkpoint)


def _tokens_measured(parity: Parity, source: Source) -> TokensPart:
    """The parity the conversion measured; a mismatch was allowed by whoever converted, so it only warns."""
    findings = []
    if parity.verdict == "mismatch":
        message = f"token ids differ in {parity.texts - parity.exact} of {parity.texts} texts, as was allowed"
        findings.append(Finding("tokenizer", message, grave=False))
    return tokens_part(parity, source, findings)
