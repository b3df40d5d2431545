"""What a conversion learns from the user's texts before it writes: importance, and half of its proof."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..converters.results import Scope
from ..core.cores import available_cores
from ..core.windows import Window
from ..quant.importance import Importance, importance_of
from ..reference.reading import Reading
from ..verify.inputs import Expected, VerifyOptions, proof_windows
from ..verify.logits import TOGETHER
from .importance import measure_activations, named_texts
from .results import Run


@dataclass(frozen=True)
class Calibration:
    """The importance, and the checkpoint's reading of the ``windows`` the proof will ask for.

    Both come from one pass over the weights, however long the texts are. A proof too long to be kept in
    memory reads for itself: ``windows`` are none then.
    """

    importance: Importance
    windows: tuple[Window, ...]
    reading: Reading


def calibrate(
    expected: Expected,
    texts: Sequence[Path],
    *,
    scope: Scope,
    run: Run,
) -> Calibration:
    """Learn from UTF-8 files; ``scope`` and ``run`` say what the proof to come will read.

    Raises InputError for texts that cannot be read or are too short.
    """
    options = VerifyOptions(
        threads=run.threads or available_cores(), progress=run.progress, announce=run.announce
    )
    named = named_texts(texts)
    windows = proof_windows(expected, scope, run.proof_texts, run.proof_tokens)
    if sum(len(window.ids) for window in windows) > TOGETHER:
        windows = ()
    activations, reading = measure_activations(expected, named, windows, options)
    digest = hashlib.sha256("\0".join(named.values()).encode()).hexdigest()
    return Calibration(importance_of(activations, sha256=digest), windows, reading)
