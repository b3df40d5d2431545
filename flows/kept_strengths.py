"""How the codes of each matrix are chosen, as far as it has been found out, for a run that goes on.

A line of JSON for each input of matrices, appended when that is done: finding out takes as long as rounding.
A line that was cut off, or is of other statistics or of another rule, says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..core.kept_lines import append_line, read_lines
from ..quant.full_statistics import FullStatistics
from ..quant.optimize import METHOD, Key, Trial
from ..quant.strengths import RULE

STRENGTHS = "strengths.jsonl"
"""The file's name in the folder of what a conversion has measured."""


def kept_strengths(folder: Path | None, statistics: FullStatistics) -> dict[Key, Trial]:
    """What an ended run has found out by these statistics; nothing without a folder."""
    if folder is None:
        return {}
    found: dict[Key, Trial] = {}
    for said in read_lines(folder / STRENGTHS):
        try:
            if said["of"] != _of(statistics):
                continue
            found |= {
                (str(name), int(matrix), str(format)): Trial(float(strength), float(ratio))
                for name, matrix, format, strength, ratio in said["trials"]
            }
        except (ValueError, LookupError, TypeError):
            continue
    return found


def keeping_strengths(
    folder: Path | None, statistics: FullStatistics
) -> Callable[[Mapping[Key, Trial]], None]:
    """What is to be told of matrices that are done. It raises OSError."""

    def keep(trials: Mapping[Key, Trial]) -> None:
        if folder is None or not trials:
            return
        rows = [[*key, trial.strength, trial.ratio] for key, trial in trials.items()]
        append_line(folder / STRENGTHS, {"of": _of(statistics), "trials": rows})

    return keep


def _of(statistics: FullStatistics) -> list[str]:
    return [statistics.sha256, METHOD, RULE]
