"""Whether a step of a batch finds room: in the budget and on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import EnvironmentProblem
from ..core.files import explained
from .batch_plan import StepPlan


def lacking_space(
    plan: StepPlan, beside: Sequence[StepPlan], there: int, budget: int | None
) -> EnvironmentProblem | None:
    """Why a step cannot be begun now, None if it can.

    ``beside`` are the steps that run; ``there`` bytes of finished outputs are on the disk, and all together
    may be ``budget``.
    """
    if budget is not None:
        left = budget - there - sum(each.bytes for each in beside)
        if plan.bytes > left:
            return EnvironmentProblem(
                f"about {plan.bytes:,} bytes are needed, {max(left, 0):,} of the {budget:,} that --disk "
                "allows are left",
                hint="allow more, or move finished outputs away",
            )
    place = _existing(plan.step.output)
    with explained(place):
        device, free = os.stat(place).st_dev, shutil.disk_usage(place).free
    free -= sum(each.bytes for each in beside if os.stat(_existing(each.step.output)).st_dev == device)
    if plan.bytes > free:
        return EnvironmentProblem(
            f"about {plan.bytes:,} bytes are needed, {max(free, 0):,} are free in {place}",
            hint="free some space, or choose another output",
        )
    return None


def _existing(path: Path) -> Path:
    return next(each for each in (path, *path.parents) if each.exists())
