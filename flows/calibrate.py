"""What a conversion learns from the user's texts before it writes: importance, and half of its proof."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..core.cores import available_cores
from ..core.progress import Progress, silent
from ..core.windows import Window
from ..quant.importance import Importance, importance_of
from ..reference.model import Reading
from ..verify.comparison import How, Subject, proof_windows
from ..verify.logits import TOGETHER
from .importance import count_activations, named_texts


@dataclass(frozen=True)
class Calibration:
    """The importance, and the checkpoint's reading of the ``windows`` the proof will ask for.

    Both come from the same passes over the weights, so that a calibrated conversion reads them no more often
    than the texts take. A proof too long to be kept in memory reads for itself: ``windows`` are none then.
    """

    importance: Importance
    windows: tuple[Window, ...]
    reading: Reading


def calibrate(
    subject: Subject,
    texts: Sequence[Path],
    *,
    scope: Literal["off", "quick", "full"],
    proof_texts: Sequence[str] | None = None,
    proof_tokens: int | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Learn from UTF-8 files; ``scope`` and the next two say what the proof to come will read.

    Raises InputError for texts that cannot be read or are too short.
    """
    how = How(threads=threads or available_cores(), progress=progress, announce=announce)
    named = named_texts(texts)
    windows = proof_windows(subject, scope, proof_texts, proof_tokens)
    if sum(len(window.ids) for window in windows) > TOGETHER:
        windows = ()
    activations, reading = count_activations(subject, named, windows, how)
    digest = hashlib.sha256("\0".join(named.values()).encode()).hexdigest()
    return Calibration(importance_of(activations, sha256=digest), windows, reading)
