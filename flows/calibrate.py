"""What a conversion learns from the user's texts before it writes: importance, and half of its proof."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..converters.family import Companion
from ..converters.results import Options, Scope
from ..converters.targets import Target, learned_path
from ..core.cores import available_cores
from ..core.errors import InputError
from ..core.model import Model
from ..core.windows import Window
from ..quant.full_statistics import TEXTS
from ..quant.imatrix_file import write_imatrix
from ..quant.importance import Importance, importance_of, importance_to_be, read_importance
from ..reference.reading import Reading
from ..verify.inputs import Expected, VerifyOptions, proof_windows, text_windows
from ..verify.logits import TOGETHER
from .arrivals import until_the_end
from .automatic import Known
from .choose import refuse_impossible
from .full_statistics import Collected, collecting, digest_of, kept_statistics, to_be_optimized, within
from .importance import measure_activations, named_texts
from .plan_files import plan_files, plan_of_target
from .probing import refuse_proof_text
from .results import Run


@dataclass(frozen=True)
class Calibration:
    """The importance, and the checkpoint's readings that are ``known``: of windows the proof will ask for.

    Both come from one pass over the weights, however long the texts are. A proof too long to be kept in
    memory reads for itself, as it does behind a pass that was ended and gone on with.
    """

    importance: Importance
    known: Known


def learn(
    expected: Expected,
    model: Model,
    targets: Sequence[Target],
    companions: Sequence[Companion],
    options: Options,
    run: Run,
) -> tuple[Importance, Known]:
    """Importance from the user's texts, and what was read for the proof meanwhile.

    What would be refused afterwards is refused before the long pass.
    """
    to_be = importance_to_be(model.tensors)
    plan_of = partial(plan_of_target, model, companions, to_be)
    if options.optimize or any(target.wish is not None for target in targets):
        refuse_text_of_the_proof(expected, options.calibrate, options.verify, run)
    refuse_impossible(targets, replace(expected, model=model), to_be, options, plan_of, run)
    _, plans = plan_files(model, targets, companions, to_be)
    paths = [path for each in zip(targets, plans, strict=True) for path in Target.planned(*each).paths]
    keep = None
    if options.optimize or run.outlet is None:
        keep = learned_path(targets, expected.checkpoint, options)
    calibration = kept_or_learned(
        expected, options.calibrate, keep, paths, scope=options.verify, full=options.optimize, run=run
    )
    return to_be_optimized(calibration.importance, optimize=options.optimize), calibration.known


def kept_or_learned(
    expected: Expected,
    calibrate_on: Sequence[str],
    keep: Path | None,
    paths: Sequence[Path],
    *,
    scope: Scope,
    full: bool,
    run: Run,
) -> Calibration:
    """What the file ``keep`` has from an ended run of the same texts, or learned from them, and kept there.

    It is gone again where the request is refused and none of ``paths`` is made. The rest is as of
    ``calibrate``.
    """
    texts = [Path(path) for path in calibrate_on]
    known = None if keep is None else kept_statistics(keep, named_texts(texts), run)
    if known is not None:
        return Calibration(known, {})
    calibration = calibrate(expected, texts, scope=scope, run=run, keep=keep, full=full)
    if keep is not None:
        until_the_end(_gone_where_refused(keep, paths))
        run.announce(f"importance data are kept in {keep}, for --imatrix")
    return calibration


@contextlib.contextmanager
def _gone_where_refused(kept: Path, paths: Sequence[Path]) -> Iterator[None]:
    """What was learned is removed where the request is refused, so that none of ``paths`` is made."""
    try:
        yield
    except InputError:
        if not any(path.exists() for path in paths):
            kept.unlink(missing_ok=True)
        raise


def refuse_text_of_the_proof(expected: Expected, calibrate_on: Sequence[str], scope: Scope, run: Run) -> None:
    """Raise InputError where formats or codes would be chosen on the text of the proof."""
    texts = named_texts([Path(path) for path in calibrate_on])
    windows = text_windows(expected, list(texts.values()), tokens=None, window=None)
    refuse_proof_text(windows, proof_windows(expected, scope, run.proof_texts, run.proof_tokens))


def calibrate(
    expected: Expected,
    texts: Sequence[Path],
    *,
    scope: Scope,
    run: Run,
    keep: Path | None = None,
    full: bool = False,
) -> Calibration:
    """Learn from UTF-8 files; ``scope`` and ``run`` say what the proof to come will read.

    What is learned is kept in the file ``keep``, and used as it is there: another machine, or another number
    of threads, would learn numbers whose last bits differ. With ``full`` these are full statistics. Raises
    InputError for texts that cannot be read or are too short, OutputExists and EnvironmentProblem.
    """
    options = VerifyOptions(
        threads=run.threads or available_cores(), progress=run.progress, announce=run.announce
    )
    named = named_texts(texts)
    windows = proof_windows(expected, scope, run.proof_texts, run.proof_tokens)
    if sum(len(window.ids) for window in windows) > TOGETHER:
        windows = ()
    if keep is None:
        activations, reading = measure_activations(expected, named, windows, options)
        return _calibration(importance_of(activations, sha256=digest_of(named)), windows, reading)
    with _gathered(keep, full=full, run=run) as collected:
        activations, reading = measure_activations(expected, named, windows, options, collected=collected)
        if collected is not None and full:
            collected.write(keep, activations, arch=expected.model.arch, texts=named, force=True)
        else:
            keep.absolute().parent.mkdir(parents=True, exist_ok=True)
            keys = {TEXTS: digest_of(named)}
            write_imatrix(keep, activations, arch=expected.model.arch, force=True, keys=keys)
    return _calibration(read_importance(keep), windows, reading)


def _gathered(keep: Path, *, full: bool, run: Run) -> contextlib.AbstractContextManager[Collected | None]:
    """Where the pass gathers, and is saved if what is measured is kept for a run that goes on."""
    if run.work is not None:
        return within(run.work, full=full)
    return collecting(keep) if full else contextlib.nullcontext()


def _calibration(importance: Importance, windows: tuple[Window, ...], reading: Reading | None) -> Calibration:
    return Calibration(importance, {} if reading is None else {windows: reading})
