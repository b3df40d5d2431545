"""Stages of a conversion that only some conversions have; their modules are loaded only there.

What reads a checkpoint in fp32, chooses formats or learns importance is a quarter of what a conversion would
load, and the start of a short one is felt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..converters.family import AnyFamily, Companion
from ..converters.gguf_plan import FilePlan
from ..converters.results import Options
from ..converters.targets import Target
from ..core.checkpoint import Checkpoint
from ..core.model import Model, Note
from ..quant.importance import Importance
from ..vocab.tokenizer import Source
from .results import Run

if TYPE_CHECKING:
    from ..verify.inputs import Expected
    from .automatic import Known


def work_kept(
    targets: Sequence[Target], checkpoint: Checkpoint, options: Options, run: Run
) -> AbstractContextManager[Path | None]:
    """The folder in which what is measured is kept for a run that goes on; None where nothing is measured."""
    if not options.optimize and all(target.wish is None for target in targets):
        return nullcontext()
    from .kept_work import work_of

    return work_of(targets[0].path, checkpoint, options.to_manifest(), run)


def importance_named(options: Options) -> Importance | None:
    """The importance data of ``options``; None where none are named. Raises InputError."""
    if options.imatrix is None:
        return None
    from .full_statistics import given_importance

    return given_importance(options)


def what_is_expected(
    checkpoint: Checkpoint, family: AnyFamily, model: Model, tokenizer: Source, options: Options
) -> Expected | None:
    """What files are held against; None where the checkpoint itself is not read."""
    if not options.needs_checkpoint:
        return None
    from ..verify.inputs import Expected

    return Expected(checkpoint, family, model, tokenizer)


def halves_read_first(
    expected: Expected | None, model: Model, options: Options, run: Run
) -> tuple[Known, Note | None]:
    """Where ``auto`` means f16: what the proof will read, and why it has to be f32 (None: f16 will do)."""
    if expected is None:
        return {}, None
    from .automatic import halves_of_types, read_first, wants_halves

    if not wants_halves(model, options):
        return {}, None
    return read_first(expected, options.verify, halves_of_types(model, expected, options), out=False, run=run)


def importance_learned(
    importance: Importance | None,
    known: Known,
    expected: Expected | None,
    model: Model,
    targets: Sequence[Target],
    companions: Sequence[Companion],
    options: Options,
    run: Run,
) -> tuple[Importance | None, Known]:
    """Importance data from the calibration texts, if there are any, and what is read for the proof so far."""
    if expected is None or not options.calibrate:
        return importance, known
    from .calibrate import learn

    importance, learned = learn(expected, model, targets, companions, options, run)
    return importance, {**known, **learned}


def wishes_fulfilled(
    targets: Sequence[Target],
    expected: Expected | None,
    model: Model,
    importance: Importance | None,
    options: Options,
    plan_of: Callable[[Target], FilePlan],
    run: Run,
) -> tuple[list[Target], Importance | None]:
    """The targets, those of a wished size or loss with chosen formats, and the importance data."""
    if all(target.wish is None for target in targets):
        return list(targets), importance
    from .choose import with_choices

    return with_choices(targets, expected, model, importance, options, plan_of, run)


def codes_optimized(
    importance: Importance | None, model: Model, plans: Sequence[FilePlan], options: Options, run: Run
) -> tuple[Importance | None, Model]:
    """With ``optimize``: importance data with what it takes to choose codes, the model with a note on it."""
    if importance is None or not options.optimize:
        return importance, model
    from .full_statistics import optimized

    return optimized(importance, model, plans, run)
