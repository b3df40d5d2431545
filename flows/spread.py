"""One conversion over many processes or machines: its plan is cut into groups of pieces, each a task.

The leader, which has planned and begun the files, lays the plan into the journal's folder. A worker opens the
checkpoint anew from it, makes sure that plan, files and versions are those the leader means, writes its
pieces and notes them in a journal file of its own. What journals say is done need not be written again, so a
task that is run again after its worker was lost returns at once, and so does a resumed conversion.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..converters.done_pieces import Done, read_done
from ..converters.gguf_writer import PiecesWritten, write_pieces
from ..converters.journal import Journal, JournalFolder, fingerprint
from ..converters.pieces import Piece, source_bytes
from ..converters.write_plan import BegunFile, WritePlan, opened_file, sound_pieces
from ..core.claims import new_mark
from ..core.cores import available_cores
from ..core.errors import EnvironmentProblem
from ..core.system_files import bytes_at, open_to_write, rename, synced
from .executor import Executor, Task
from .results import Run

SMALLEST, LARGEST = 64 << 20, 256 << 20
"""Bytes of the checkpoint in a task: many tasks for each worker, so that all end at about the same time."""
_TASKS = 8  # for each thread of a worker, where that makes them neither too small nor too large
_PLAN = "plan.pickle"


@dataclass(frozen=True)
class Order:
    """What all tasks of a conversion have in common.

    ``folder`` is the journal's; the plan lies there, with this ``sha256``. ``fingerprint`` is what it must
    have (converters/journal.py). A task takes ``threads``, or its part where ``share`` tasks run on a
    machine. ``run`` is unique.
    """

    folder: Path
    sha256: str
    fingerprint: Mapping[str, Any]
    share: int
    threads: int | None
    run: str


def write_spread(
    plan: WritePlan,
    pieces: Sequence[Piece],
    journal: JournalFolder,
    identity: Mapping[str, Any],
    executor: Executor,
    run: Run,
) -> PiecesWritten:
    """``write_pieces`` by the workers of an executor; ``identity`` is the plan's fingerprint.

    The journal is there from the beginning. Raises what tasks raise, and EnvironmentProblem of the executor.
    """
    journal.establish()
    order = _lay_down(plan, journal.path, identity, executor, run)
    sizes = [source_bytes(plan.tensors[piece.index], piece) for piece in pieces]
    groups = list(_groups(pieces, sizes, run.group_bytes or _group_bytes(sum(sizes), executor.slots)))
    for number, (group, _) in enumerate(groups):
        executor.submit(Task(str(number), write_group, (order, number, group)))
    harmed: set[str] = set()
    kernels, done, total = {}, 0, sum(sizes)
    run.progress("write", done, total)
    for outcome in executor.results():
        if outcome.error is not None:
            raise outcome.error
        written: PiecesWritten = outcome.value
        harmed |= written.not_finite
        kernels.update(dict.fromkeys(written.kernels))
        done += groups[int(outcome.task.key)][1]
        run.progress("write", done, total)
    return PiecesWritten(frozenset(harmed), tuple(kernels))


def write_group(order: Order, number: int, pieces: Sequence[Piece]) -> PiecesWritten:
    """A task: write those pieces that no journal has. Raises as ``write_pieces`` does, and EnvironmentProblem
    where this process does not see what the leader does.
    """
    try:
        plan = _plan_of(order.folder, order.sha256, pickle.dumps(dict(order.fingerprint)))
        done = Done() if _is_first(order, number) else read_done(order.folder)
        found = {piece: done.checks[piece] for piece in pieces if piece in done.checks}
        threads = order.threads or max(1, available_cores() // order.share)
        sound = sound_pieces(plan, found, pieces=pieces, threads=threads) if found else set()
        left = [piece for piece in pieces if piece not in sound]
        with Journal(order.folder, _writer(), [file.path for file in plan.files]) as journal:
            written = write_pieces(plan, left, threads=threads, journal=journal)
    except FileNotFoundError as error:
        raise _not_here(error.filename or order.folder) from error
    harmed = {plan.tensors[piece.index].name for piece in sound} & done.not_finite
    return PiecesWritten(written.not_finite | harmed, written.kernels)


def _is_first(order: Order, number: int) -> bool:
    """Whether a task has not been begun before: only then has nobody written its pieces in this run.

    To read the journals of a large model takes as long as many a task.
    """
    try:
        os.close(open_to_write(order.folder / f"{order.run}-{number}.begun", new=True))
    except FileExistsError:
        return False
    return True


def _lay_down(
    plan: WritePlan, folder: Path, identity: Mapping[str, Any], executor: Executor, run: Run
) -> Order:
    """The plan in the journal's folder: importance data make it large, and every task needs it."""
    models = tuple(
        replace(model, files=tuple(replace(file, path=_absolute(file.path)) for file in model.files))
        for model in plan.models
    )
    content = pickle.dumps(replace(plan, models=models))
    temporary = folder / f"{_PLAN}.new"
    temporary.write_bytes(content)
    synced(temporary)
    rename(temporary, folder / _PLAN)
    digest = hashlib.sha256(content).hexdigest()
    return Order(_absolute(folder), digest, identity, executor.share, run.threads, new_mark())


@functools.lru_cache(maxsize=1)
def _plan_of(folder: Path, sha256: str, identity: bytes) -> WritePlan:
    """The plan the leader has laid down, its checkpoint opened anew; ``identity`` is a pickled fingerprint.

    Nothing is unpickled but what the leader has made. Raises EnvironmentProblem where it is another, or what
    it is about is not here what it is there.
    """
    content = (folder / _PLAN).read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise EnvironmentProblem(
            f"{folder / _PLAN} is not the plan of this run", hint="do not run two conversions to one file"
        )
    plan: WritePlan = pickle.loads(content)
    here = fingerprint(map(_layout, plan.files), importance=plan.importance, allow_nan=plan.allow_nan)
    expected: Mapping[str, Any] = pickle.loads(identity)
    if here["versions"] != expected["versions"]:
        names = [name for name, each in expected["versions"].items() if here["versions"].get(name) != each]
        raise EnvironmentProblem(
            f"this worker has other versions of {', '.join(names)} than the leader",
            hint="install the same versions everywhere, and start the workers again",
        )
    if here != expected:
        raise EnvironmentProblem(
            f"the files beside {folder} are not as this run has begun them, or this worker sees others",
            hint="workers need the same file system, under the same paths",
        )
    return plan


def _layout(file: BegunFile) -> tuple[bytes, int]:
    """Header and bytes of data of a file that was begun, as ``FilePlan.layout`` has planned them."""
    with opened_file(file.path) as handle:
        return bytes_at(handle, file.data_offset, 0), file.size - file.data_offset


def _not_here(path: object) -> EnvironmentProblem:
    from .dask_worker import worker_address

    return EnvironmentProblem(
        f"the worker {worker_address()} does not see {path}",
        hint="workers need the same file system, under the same paths",
    )


@functools.cache
def _process_mark(process: int) -> str:
    return new_mark()


def _writer() -> str:
    """The name of this thread's journal: no two write to one file."""
    return f"{_process_mark(os.getpid())}-{threading.get_native_id()}"


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _group_bytes(total: int, slots: int) -> int:
    return min(max(total // (slots * _TASKS), SMALLEST), LARGEST)


def _groups(pieces: Sequence[Piece], sizes: Sequence[int], most: int) -> Iterator[tuple[list[Piece], int]]:
    """Neighbours together, each group of about ``most`` bytes, with its bytes."""
    group: list[Piece] = []
    held = 0
    for piece, size in zip(pieces, sizes, strict=True):
        if group and held + size > most:
            yield group, held
            group, held = [], 0
        group.append(piece)
        held += size
    if group:
        yield group, held
