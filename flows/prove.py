"""The proof a conversion to GGUF ends with: one pass over the checkpoint for all files it made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from ..core.cores import available_cores
from ..core.progress import Progress, silent
from ..core.windows import Window
from ..quant.gguf_weights import open_gguf
from ..quant.importance import Importance
from ..reference.model import Reading
from ..verify.comparison import How, Subject, cost, proof_windows, read_reference
from ..verify.gguf_artifact import NewGgufArtifact
from ..verify.proof import Proof
from ..verify.prove import prove
from ..vocab.parity import Parity
from .calibrate import Calibration


def prove_new_files(
    expected: Subject,
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
    """Hold files just made against their checkpoint; ``expected`` has the model that was to be written.

    ``quick`` takes the tokens' parity as the conversion measured it and leaves the weights out, which this
    process has just encoded; ``full`` does again all that ``verify`` does. ``importance`` is what the files
    were quantized with; ``calibration`` may have read the windows already. ``proof_texts`` are read instead
    of the built-in ones, at most ``proof_tokens`` of each. Raises KconvError where reading the checkpoint
    fails.
    """
    how = How(
        threads=threads or available_cores(), progress=progress, announce=announce, gelu_share=scope == "full"
    )
    windows = proof_windows(expected, scope, proof_texts, proof_tokens)
    announce(cost(expected, windows, len(files)))

    @functools.cache  # once for all files
    def read(asked: tuple[Window, ...]) -> Reading:
        known = calibration is not None and calibration.windows == asked
        return calibration.reading if calibration and known else read_reference(expected, how, asked)

    proofs = []
    for path in files:
        with open_gguf(path) as file:
            artifact = NewGgufArtifact(file, parity=parity, scope=scope, importance=importance)
            proofs.append(prove(expected, artifact, windows, how, texts=proof_texts, scope=scope, read=read))
    return tuple(proofs)
