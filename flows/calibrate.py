"""What a conversion learns from the user's texts before it writes: importance, and half of its proof."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..converters.kept_importance import kept_importance
from ..converters.results import Scope
from ..core.cores import available_cores
from ..core.windows import Window
from ..quant.importance import Importance, importance_of, read_importance
from ..reference.reading import Reading
from ..verify.inputs import Expected, VerifyOptions, proof_windows
from ..verify.logits import TOGETHER
from .full_statistics import collecting, digest_of
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
    keep: Path | None = None,
) -> Calibration:
    """Learn from UTF-8 files; ``scope`` and ``run`` say what the proof to come will read.

    Full statistics are learned, too, where they are to be kept in the file ``keep``. Raises InputError for
    texts that cannot be read or are too short, OutputExists and EnvironmentProblem.
    """
    options = VerifyOptions(
        threads=run.threads or available_cores(), progress=run.progress, announce=run.announce
    )
    named = named_texts(texts)
    windows = proof_windows(expected, scope, run.proof_texts, run.proof_tokens)
    if sum(len(window.ids) for window in windows) > TOGETHER:
        windows = ()
    if keep is not None:
        with collecting(keep) as collected:
            activations, reading = measure_activations(expected, named, windows, options, collected=collected)
            collected.write(keep, activations, arch=expected.model.arch, texts=named, force=True)
        return Calibration(read_importance(keep), windows, reading)
    activations, reading = measure_activations(expected, named, windows, options)
    return Calibration(importance_of(activations, sha256=digest_of(named)), windows, reading)


def learned_before(paths: Sequence[Path], texts: Sequence[Path], run: Run) -> Importance | None:
    """What a run for these ``paths`` has learned of the same texts before it was ended, if this one goes on.

    Raises InputError as ``calibrate`` does.
    """
    journal = journal_of(paths) if run.resume else None
    learned = None if journal is None else kept_importance(journal)
    if learned is None or learned.sha256 != digest_of(named_texts(texts)):
        return None
    run.announce("resumed: the importance data have been computed already")
    return learned
