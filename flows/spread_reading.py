"""The checkpoint in fp32 over many processes or machines: each reads some of the windows.

Windows are read each by itself, so what comes out does not depend on which are read together, but for the
last digits (reference/model.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..converters.families import family_for
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.progress import Progress
from ..core.windows import Window
from ..reference.magnitudes import Magnitudes
from ..reference.model import Reference
from ..reference.reading import Reading
from ..verify.inputs import Expected
from .executor import Executor, Task


@dataclass(frozen=True)
class Read:
    """Of some windows what enters the output matrix, ``(len(ids), hidden)`` each, and the magnitudes."""

    hidden: tuple[npt.NDArray[np.float32], ...]
    magnitudes: tuple[tuple[Any, ...], ...]


def read_spread(
    expected: Expected,
    windows: Sequence[Window],
    executor: Executor,
    *,
    threads: int | None,
    progress: Progress,
) -> Reading:
    """``read_reference`` by the workers of an executor. Raises what it raises, and what the executor does."""
    groups = divided(windows, executor.slots)
    for number, group in enumerate(groups):
        asked = tuple(windows[each] for each in group)
        arguments = (expected.checkpoint, asked, executor.share, threads)
        executor.submit(Task(str(number), read_group, arguments))
    hidden: list[npt.NDArray[np.float32]] = [np.empty(0, np.float32)] * len(windows)
    peaks: dict[tuple[str, bool], tuple[Any, ...]] = {}
    done = 0
    progress("reference", done, len(groups))
    for outcome in executor.results():
        if outcome.error is not None:
            raise outcome.error
        group, read = groups[int(outcome.task.key)], outcome.value
        for number, values in zip(group, read.hidden, strict=True):
            hidden[number] = values
        for name, out, value, window, position in read.magnitudes:
            found = (value, -group[window], position)  # of equals the first window's
            peaks[name, out] = max(peaks.get((name, out), found), found)
        done += 1
        progress("reference", done, len(groups))
    values = [[*key, value, -window, position] for key, (value, window, position) in peaks.items()]
    reference = Reference(expected.checkpoint, expected.family, threads=threads)
    return Reading(hidden, [], reference.output, Magnitudes.from_json(len(windows), values))


def read_group(checkpoint: Checkpoint, windows: Sequence[Window], share: int, threads: int | None) -> Read:
    """A task: the checkpoint, opened anew where this runs, over some windows."""
    threads = threads or max(1, available_cores() // share)
    reading = Reference(checkpoint, family_for(checkpoint.config), threads=threads).read(windows)
    return Read(tuple(reading.hidden), tuple(tuple(each) for each in reading.magnitudes.to_json()))


def divided(windows: Sequence[Window], most: int) -> list[list[int]]:
    """Windows by their numbers, in at most so many groups of about as many tokens; none is empty."""
    groups: list[list[int]] = [[] for _ in range(min(most, len(windows)))]
    tokens = [0] * len(groups)
    for number in sorted(range(len(windows)), key=lambda number: -windows[number].tokens):
        least = tokens.index(min(tokens))
        groups[least].append(number)
        tokens[least] += windows[number].tokens
    return [sorted(group) for group in groups]
