"""The proof a conversion to GGUF ends with: one pass over the checkpoint for all files it made."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from ..converters.manifest import versions
from ..core.cores import available_cores
from ..core.windows import Window
from ..quant.gguf_weights import open_gguf
from ..quant.importance import Importance
from ..reference.kept_reading import kept_or_read
from ..reference.model import Reference
from ..reference.reading import Reading
from ..verify.early import early_readers, room_for_logits
from ..verify.inputs import Expected, VerifyOptions, cost, proof_windows, read_reference
from ..verify.new_gguf import NewGgufArtifact
from ..verify.predicted import with_prediction
from ..verify.proof import Proof
from ..verify.prove import prove
from ..verify.recomputed import QUICK
from ..vocab.parity import Parity
from .automatic import Known
from .results import Run
from .spread_logits import compare_spread
from .spread_reading import read_spread


def prove_new_files(
    expected: Expected,
    files: Sequence[Path],
    parity: Parity,
    *,
    scope: Literal["quick", "full"],
    run: Run,
    importance: Importance | None = None,
    known: Known = MappingProxyType({}),
    keep: Path | None = None,
    predicted: Sequence[float | None] = (),
) -> tuple[Proof, ...]:
    """Hold files just made against their checkpoint; ``expected`` has the model that was to be written.

    ``quick`` takes the tokens' parity as the conversion measured it and leaves the weights out, which this
    process has just encoded; ``full`` does again all that ``verify`` does. ``importance`` is what the files
    were quantized with; ``known`` is what has been read already; in the folder ``keep`` readings are kept,
    for a run that goes on with this one. ``predicted`` are the mean divergences the files were chosen to
    have. Raises KconvError where reading the checkpoint fails.
    """
    options = VerifyOptions(
        threads=run.threads or available_cores(),
        progress=run.progress,
        announce=run.announce,
        part=run.observer.part,
        gelu_share=scope == "full",
        measure=None if run.executor is None else functools.partial(compare_spread, expected, run),
    )
    windows = proof_windows(expected, scope, run.proof_texts, run.proof_tokens)
    run.announce(cost(expected, windows, len(files)))

    @functools.cache  # once for all files
    def read(asked: tuple[Window, ...]) -> Reading:
        reading = known[asked] if asked in known else read_and_keep(keep, expected, options, asked, run)
        if len(files) > 1:
            reading.keep(room_for_logits())
        return reading

    proofs = []
    positions = QUICK if scope == "quick" else None
    with early_readers(expected, files, windows, options, positions) as readers:
        for number, (path, early) in enumerate(zip(files, readers, strict=True), 1):
            with open_gguf(path) as file:
                artifact = NewGgufArtifact(
                    file, parity=parity, scope=scope, importance=importance, early=early
                )
                run.observer.proving(path, artifact.type, number, len(files))
                proof = prove(
                    expected, artifact, windows, options, texts=run.proof_texts, scope=scope, read=read
                )
                if predicted:
                    proof = with_prediction(proof, predicted[number - 1])
                proofs.append(proof)
                run.observer.proven(proof)
    return tuple(proofs)


def read_and_keep(
    keep: Path | None,
    expected: Expected,
    options: VerifyOptions,
    windows: tuple[Window, ...],
    run: Run | None = None,
) -> Reading:
    """The checkpoint in fp32 over all windows; in the folder ``keep`` that stays for a run that goes on.

    The executor of ``run``, where it has one, reads them.
    """
    read = functools.partial(read_reference, expected, options, windows)
    if run is not None and run.executor is not None:
        read = functools.partial(
            read_spread, expected, windows, run.executor, threads=run.threads, progress=run.progress
        )
    if keep is None:
        return read()
    reference = functools.partial(Reference, expected.checkpoint, expected.family, threads=options.threads)
    return kept_or_read(keep, windows, versions(("torch", "transformers")), reference, read)
