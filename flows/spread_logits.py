"""A file's logits against the checkpoint's over many processes or machines: each has some of the windows.

What the checkpoint makes of a window travels as what enters its output matrix, some kilobytes a token; logits
are made, compared and forgotten where llama.cpp computes the file's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..converters.families import family_for
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.windows import Window
from ..reference.magnitudes import Magnitudes
from ..reference.model import Reference
from ..reference.reading import Reading
from ..runtimes.llama_reader import LlamaReader
from ..runtimes.reader import RuntimeFailure
from ..verify.figures import Measure
from ..verify.inputs import Expected
from ..verify.logits import Read, Seen, compare, groups
from .executor import Task
from .results import Run
from .spread_reading import divided

Floats = npt.NDArray[np.float32]


def compare_spread(
    expected: Expected, run: Run, path: Path, read: Read, windows: Sequence[Window], seen: Seen
) -> Measure:
    """``compare`` by the workers of the run's executor, who see the file at that ``path``.

    Raises what it raises, and what the executor does.
    """
    executor = run.executor
    assert executor is not None
    measure = Measure(windows)
    total, done = sum(len(window.scored) for window in windows), 0
    for first, together in groups(windows):
        reading = read(together)
        if not first:
            seen(reading)
        run.progress("logits", done, total)
        parts = divided(together, executor.slots)
        for number, part in enumerate(parts):
            asked = tuple(together[each] for each in part)
            hidden = tuple(reading.hidden[each] for each in part)
            arguments = (expected.checkpoint, path, asked, hidden, executor.share, run.threads)
            executor.submit(Task(str(number), compare_group, arguments))
        for outcome in executor.results():
            if outcome.error is not None:
                raise outcome.error
            if isinstance(outcome.value, RuntimeFailure):
                raise outcome.value
            part = parts[int(outcome.task.key)]
            measure.take(outcome.value, [first + each for each in part])
            done += sum(len(together[each].scored) for each in part)
            run.progress("logits", done, total)
    return measure


def compare_group(
    checkpoint: Checkpoint,
    path: Path,
    windows: Sequence[Window],
    hidden: Sequence[Floats],
    share: int,
    threads: int | None,
) -> Measure | RuntimeFailure:
    """A task: the file in llama.cpp over some windows; ``hidden`` enters the checkpoint's last matrix.

    Where llama.cpp refuses the file that is the answer, for the leader to judge.
    """
    threads = threads or max(1, available_cores() // share)
    reference = Reference(checkpoint, family_for(checkpoint.config), threads=threads)
    reading = Reading(list(hidden), [], reference.output, Magnitudes.from_json(len(windows), []))
    try:
        with LlamaReader(path, threads=threads) as reader:
            return compare(lambda together: reading, reader, windows)
    except RuntimeFailure as failure:
        return failure
