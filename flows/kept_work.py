"""What a command has measured so far, in a folder that stays where it is interrupted or killed.

The folder, ``PATH.gathering``, lies beside the file that is to be made. A conversion keeps in it the pass
through the layers (reference/saved_pass.py), what tensors and mixes of formats lose (kept_losses.py), how
codes are chosen in each matrix, and the formats chosen; ``--resume`` takes them up. It is gone once the file
is there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..converters.hashes import checkpoint_hashes
from ..converters.journal import source_stamps
from ..converters.kept_choices import CHOICES
from ..converters.manifest import versions
from ..core import progress
from ..core.checkpoint import Checkpoint
from ..core.claims import claimed_folder
from ..core.errors import EnvironmentProblem
from ..core.leftovers import GATHERED, GATHERING
from ..core.system_files import synced
from ..reference.saved_pass import MARK
from .kept_losses import WORTH_KEEPING
from .kept_strengths import STRENGTHS
from .results import Run

PASS = "statistics"
"""The folder in that of a conversion which has what a pass gathers."""

CODES = "codes"
"""The folder in it for codes that are chosen; of a run that was killed nobody knows how far they came."""

_ASKED = GATHERED[0]


def work_folder(path: Path) -> Path:
    """Where what is measured for the file ``path`` is kept."""
    return path.absolute().with_name(f"{path.name}{GATHERING}")


@contextlib.contextmanager
def held_work(path: Path, *, resume: bool) -> Iterator[Path]:
    """That folder, claimed. Without ``resume`` what lies in it is discarded.

    After an interruption it stays if there is something to go on with, and ``on_remark`` is told.
    Raises EnvironmentProblem where another run is at work.
    """
    folder = work_folder(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(claimed_folder(folder, _worth_keeping(folder)))
        except BlockingIOError as error:
            raise EnvironmentProblem(
                f"{folder} is in use: another kconv is measuring for {path.name}",
                hint="wait for it, or name another file with -o",
            ) from error
        except OSError as error:
            raise EnvironmentProblem(f"{folder} cannot be made: {error.strerror}") from error
        if not resume:
            emptied(folder)
        yield folder


def work_of(
    output: Path, checkpoint: Checkpoint, options: Mapping[str, Any], run: Run
) -> contextlib.AbstractContextManager[Path | None]:
    """The folder a conversion of ``checkpoint`` to ``output``, a file or a folder, keeps its work in.

    None where it keeps none. What was kept for other options, of other weights or by other programs is
    discarded.
    """
    if checkpoint.stream is not None or run.outlet is not None or run.executor is not None:
        return contextlib.nullcontext()
    stamps = [
        {key: value for key, value in stamp.items() if key != "sha256"}
        for stamp in source_stamps(checkpoint_hashes(checkpoint).sources)
    ]
    asked = {
        "options": options,
        "sources": stamps,
        "versions": versions(("torch", "transformers")),
    }
    return _work_for(output, json.loads(json.dumps(asked)), resume=run.resume)


@contextlib.contextmanager
def _work_for(path: Path, asked: Mapping[str, Any], *, resume: bool) -> Iterator[Path]:
    with held_work(path, resume=resume) as folder:
        mark = folder / _ASKED
        if _read(mark) != asked:
            emptied(folder)
            mark.write_text(json.dumps(asked), encoding="utf-8")
            synced(mark)
        shutil.rmtree(folder / CODES, ignore_errors=True)
        yield folder


def _read(path: Path) -> object:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def emptied(folder: Path) -> None:
    """Remove all that is in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _worth_keeping(folder: Path) -> Callable[[BaseException], bool]:
    def keep(error: BaseException) -> bool:
        if not isinstance(error, KeyboardInterrupt | EnvironmentProblem | OSError | MemoryError):
            return False  # the input was at fault, and would be again
        names = (MARK, f"{PASS}/{MARK}", *WORTH_KEEPING, STRENGTHS, CHOICES)
        there = any(any(folder.glob(name)) for name in names)
        if there:
            progress.on_remark(
                f"what has been measured so far is kept in {folder}: the same command with --resume goes on "
                "from there; delete the folder if you do not want it"
            )
        return there

    return keep
