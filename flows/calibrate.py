"""What a conversion learns from the user's texts before it writes: importance, and half of its proof."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..converters.kept_importance import kept_importance
from ..converters.results import Scope
from ..core.cores import available_cores
from ..core.windows import Window
from ..quant.importance import Importance, importance_of
from ..reference.reading import Reading
from ..verify.inputs import Expected, VerifyOptions, proof_windows
from ..verify.logits import TOGETHER
from .importance import measure_activations, named_texts
from .results import Run
from .resume import journal_of


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
    return Calibration(importance_of(activations, sha256=_digest(named)), windows, reading)


def learned_before(paths: Sequence[Path], texts: Sequence[Path], run: Run) -> Importance | None:
    """What a run for these ``paths`` has learned of the same texts before it was ended, if this one goes on.

    Raises InputError as ``calibrate`` does.
    """
    journal = journal_of(paths) if run.resume else None
    learned = None if journal is None else kept_importance(journal)
    if learned is None or learned.sha256 != _digest(named_texts(texts)):
        return None
    run.announce("resumed: the importance data have been computed already")
    return learned


def _digest(named: Mapping[str, str]) -> str:
    return hashlib.sha256("\0".join(named.values()).encode()).hexdigest()
