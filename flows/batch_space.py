"""Whether a step of a batch finds room: in the budget and on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..core.errors import EnvironmentProblem
from ..core.files import explained, nearest_existing
from ..hub.cache import cache_folder
from .batch_plan import StepPlan


def lacking_space(
    plan: StepPlan, fetch: int, beside: Sequence[StepPlan], there: int, budget: int | None
) -> EnvironmentProblem | None:
    """Why a step cannot be begun now, None if it can.

    It is to ``fetch`` so many bytes first. ``beside`` are the steps that run; ``there`` bytes of finished
    outputs and downloads are on the disk, and all together may be ``budget``.
    """
    if budget is not None:
        left = budget - there - sum(each.bytes for each in beside)
        if plan.bytes + fetch > left:
            return EnvironmentProblem(
                f"about {plan.bytes + fetch:,} bytes are needed, {max(left, 0):,} of the {budget:,} that "
                "--disk allows are left",
                hint="allow more, or move finished outputs away",
            )
    place = nearest_existing(plan.step.output)
    with_fetch = fetch and _same_disk(place, cache_folder())
    needed = plan.bytes + (fetch if with_fetch else 0)
    with explained(place):
        device, free = os.stat(place).st_dev, shutil.disk_usage(place).free
    free -= sum(each.bytes for each in beside if os.stat(nearest_existing(each.step.output)).st_dev == device)
    if needed > free:
        return EnvironmentProblem(
            f"about {needed:,} bytes are needed, {max(free, 0):,} are free in {place}",
            hint="free some space, or choose another output",
        )
    return None


def _same_disk(one: Path, other: Path) -> bool:
    """The download itself looks at another disk."""
    return os.stat(one).st_dev == os.stat(nearest_existing(other)).st_dev
