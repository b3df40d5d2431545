"""Writing GGUF: one pass over the weights into one or several models' files, as planned (gguf_plan.py).

Slabs of rows are read, converted and written at their known places by a few threads. No more than a slab
per thread is ever in memory, and the bytes do not depend on the number of threads, nor on that of processes:
``begin_files`` makes the files and says what goes where, ``write_pieces`` writes some of it, in this process
or another, and ``finish_files`` reads the headers back. ``write_files`` is the three, one after the other.
With a journal (journal.py) the pieces a run has written before it was ended need not be written again.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..core.cores import available_cores
from ..core.elsewhere import Stream
from ..core.errors import EnvironmentProblem, GgufError
from ..core.gguf_file import read_header
from ..core.model import Note
from ..core.outlet import Outlet, OutletFile
from ..core.progress import Progress, silent
from ..core.room import check_room
from ..core.system_files import begin_to_sync, bytes_on_disk, write_at
from ..core.tensor import Tensor
from ..quant import native
from ..quant.encoders import encoder_of
from ..quant.formats import BF16, F16, F32, Format
from ..quant.importance import Importance
from ..quant.slabs import Scratch, Slab, has_overflowed
from .bad_weights import has_bad_weights
from .gguf_plan import FilePlan
from .journal import Journal
from .pieces import Piece, source_bytes, work_through
from .write_plan import BegunFile, BegunModel, OpenFiles, WritePlan, opened_file, opened_models, place_of

_PASSED_THROUGH = frozenset(format.ggml_type for format in (F32, F16, BF16))  # by convert_slab, bit by bit


@dataclass(frozen=True)
class PiecesWritten:
    """Of pieces written by one process: the tensors in which weights are not finite, and notes on kernels."""

    not_finite: frozenset[str]
    kernels: tuple[Note, ...]


@dataclass(frozen=True)
class Written:
    """Sizes of the files in bytes, and the tensors in which NaN or infinite weights were let through.

    ``kernels`` says which kernels were not used since their bytes are not libggml's.
    """

    sizes: tuple[int, ...]
    not_finite: tuple[str, ...] = ()
    kernels: tuple[Note, ...] = ()

    @property
    def notes(self) -> tuple[Note, ...]:
        """What there is to say about that."""
        if not self.not_finite:
            return self.kernels
        first, count = self.not_finite[0], len(self.not_finite)
        message = f"NaN or infinite weights were written, as allowed, in {count} of the tensors ({first}, …)"
        return (Note("not-finite", message, warning=True), *self.kernels)


def write_files(
    tensors: Sequence[Tensor],
    plans: Sequence[FilePlan],
    temporaries: Sequence[Path],
    *,
    threads: int | None = None,
    allow_nan: bool = False,
    importance: Importance | None = None,
    progress: Progress = silent,
    stream: Stream | None = None,
) -> Written:
    """Write the files of all plans to ``temporaries``, from one read of the tensors, and read them back.

    ``temporaries`` stand for the ``paths`` of each plan, one plan's after the other's. ``importance`` weighs
    the columns of the matrices it knows, in every quantized format. ``stream`` is where weights come from
    that are not on this machine. Raises NonFiniteError (unless
    ``allow_nan``), EnvironmentProblem and what reading the tensors raises.
    """
    plan = begin_files(tensors, plans, temporaries, allow_nan=allow_nan, importance=importance)
    written = write_pieces(plan, plan.pieces(), threads=threads, progress=progress, stream=stream)
    return finished(plan, written.not_finite, written.kernels)


def begin_files(
    tensors: Sequence[Tensor],
    plans: Sequence[FilePlan],
    temporaries: Sequence[Path],
    *,
    allow_nan: bool = False,
    importance: Importance | None = None,
    outlet: Outlet | None = None,
) -> WritePlan:
    """Give ``temporaries``, which are there, their headers and final lengths; see ``write_files``.

    What an earlier run has written to them behind the header stays. An ``outlet`` does all this itself.
    """
    if outlet is None or outlet.keeps:
        there = sum(bytes_on_disk(path.stat()) for path in temporaries)
        check_room([*((plan.path, plan.data_bytes) for plan in plans), (plans[0].path, -there)])
    layouts = [plan.layout() for plan in plans]
    models = _models(plans, layouts, temporaries)
    begun = WritePlan(tuple(tensors), models, importance, allow_nan)
    headers = [header for layout in layouts for header, _ in layout]
    if outlet is not None:
        outlet.begin(_outlet_files(begun, plans))
        for number, header in enumerate(headers):
            outlet.write(number, memoryview(header), 0)
        return begun
    for file, header in zip(begun.files, headers, strict=True):
        with opened_file(file.path) as handle:
            os.truncate(handle, file.size)
            write_at(handle, memoryview(header), 0)
    return begun


def _outlet_files(begun: WritePlan, plans: Sequence[FilePlan]) -> list[OutletFile]:
    """The files with the ranges that are written to them: their headers and tensors."""
    paths = iter([path for plan in plans for path in plan.paths])
    found = []
    for model in begun.models:
        for part, file in enumerate(model.files):
            own = [info for info in model.tensors if info.part == part]
            starts = [(file.data_offset + info.offset, info.nbytes) for info in own]
            ranges = ((0, file.data_offset), *((start, start + count) for start, count in starts))
            found.append(OutletFile(next(paths), file.path, file.size, ranges))
    return found


def plan_writing(
    tensors: Sequence[Tensor],
    plans: Sequence[FilePlan],
    paths: Sequence[Path],
    *,
    allow_nan: bool = False,
    importance: Importance | None = None,
) -> WritePlan:
    """What ``begin_files`` returns, of files that were begun already."""
    models = _models(plans, (plan.layout() for plan in plans), paths)
    return WritePlan(tuple(tensors), models, importance, allow_nan)


def _models(
    plans: Sequence[FilePlan], layouts: Iterable[Sequence[tuple[bytes, int]]], paths: Sequence[Path]
) -> tuple[BegunModel, ...]:
    """Models with their files at ``paths``; of a large vocabulary a layout takes half a second to make."""
    left = iter(paths)
    models = []
    for plan, layout in zip(plans, layouts, strict=True):
        sizes = [(len(header), len(header) + data_bytes) for header, data_bytes in layout]
        files = tuple(BegunFile(next(left), *size) for size in sizes)
        models.append(BegunModel(files, plan.formats, plan.tensors))
    return tuple(models)


def write_pieces(
    plan: WritePlan,
    pieces: Sequence[Piece],
    *,
    threads: int | None = None,
    journal: Journal | None = None,
    progress: Progress = silent,
    stream: Stream | None = None,
    outlet: Outlet | None = None,
) -> PiecesWritten:
    """Write some of ``plan.pieces()`` to the files of ``begin_files``, in any process that sees them.

    Pieces may be written again, after a process died at them, say; ``journal`` is told of each. An ``outlet``
    gets them instead of the files, if it was begun. Raises
    NonFiniteError (unless the plan allows it), EnvironmentProblem where a file is not as it was begun,
    OSError where the system refuses to write, and what reading the tensors raises.
    """
    harmed: set[str] = set()
    tell = _at_once
    with contextlib.ExitStack() as stack:
        opened = opened_models(plan, stack) if outlet is None else _numbered(plan)
        put = _to_disk if outlet is None else outlet.write

        def write(rows: Piece, scratch: Scratch) -> int:
            tensor = plan.tensors[rows.index]
            formats = [model.formats[rows.index] for model in plan.models]
            slab = _slab(tensor, rows, formats, plan.importance, scratch)
            if has_bad_weights(slab, tensor, rows, allow_nan=plan.allow_nan):
                harmed.add(tensor.name)
            check = 0
            for model, files, data in zip(plan.models, opened, slab.data, strict=True):
                handle, offset, _ = place_of(model, files, tensor, rows)
                put(handle, memoryview(data.data).cast("B"), offset)
                check = zlib.crc32(data.data, check) if journal is not None else 0
            if journal is not None:
                name = tensor.name if tensor.name in harmed else None
                tell(rows.index, partial(journal.finished, rows, check, name))
            return source_bytes(tensor, rows)

        work = partial(
            work_through,
            work=write,
            threads=threads or available_cores(),
            stage="write",
            stream=stream,
            read=lambda rows: plan.tensors[rows.index].read(rows.start, rows.stop),
        )

        def work_on(some: Sequence[Piece]) -> None:
            total = sum(source_bytes(plan.tensors[rows.index], rows) for rows in some)
            work(some, total=total, progress=progress)

        if stream is not None or outlet is not None:  # weights come once, or are gone once written
            work_on(pieces)
        else:
            late = stack.enter_context(native.checking_late())
            tell, left = late.tell, pieces
            while left:
                work_on(left)
                again = _again(plan, late.settled())
                late.pass_on(again)
                left = [rows for rows in left if rows.index in again]
    formats = (format for model in plan.models for format in model.formats)
    return PiecesWritten(frozenset(harmed), native.notes(formats))


def _at_once(number: int, call: Callable[[], None]) -> None:
    call()


def _again(plan: WritePlan, formats: Collection[str]) -> frozenset[int]:
    """The tensors that some file has in one of those formats, whose kernels turned out to differ."""
    return frozenset(
        index for model in plan.models for index, format in enumerate(model.formats) if format.name in formats
    )


def _to_disk(handle: int, data: memoryview, offset: int) -> None:
    write_at(handle, data, offset)
    begin_to_sync(handle, data.nbytes, offset)


def _numbered(plan: WritePlan) -> list[OpenFiles]:
    """What ``opened_models`` returns, with the places of files in their list for descriptors."""
    numbers = itertools.count()
    return [[(next(numbers), file.data_offset) for file in model.files] for model in plan.models]


def _slab(
    tensor: Tensor, rows: Piece, formats: Sequence[Format], importance: Importance | None, scratch: Scratch
) -> Slab:
    """Rows in each of ``formats``; those a file holds in that format already are copied."""
    stored = None if tensor.stored and tensor.stored.ggml_type in _PASSED_THROUGH else tensor.stored
    others = [format for format in formats if stored is None or format.ggml_type != stored.ggml_type]
    slab = Slab((), 0.0)
    if others:
        source = tensor.read(rows.start, rows.stop)
        slab = encoder_of(tensor, others, importance).encode(source, tensor.dtype, scratch, rows.start)
    if stored is None or len(others) == len(formats):
        return slab
    copied, made = stored.read(rows.start, rows.stop), iter(slab.data)
    same = [format.ggml_type == stored.ggml_type for format in formats]
    if has_overflowed(formats[same.index(True)], copied):
        slab = replace(slab, largest=math.inf)
    return replace(slab, data=tuple(copied if kept else next(made) for kept in same))


def finish_files(plan: WritePlan) -> tuple[int, ...]:
    """The size of each model's files in bytes, once their headers have been found to be as planned.

    Raises EnvironmentProblem where they are not.
    """
    return tuple(_reread(model) for model in plan.models)


def finished(
    plan: WritePlan, harmed: Collection[str], kernels: tuple[Note, ...] = (), *, on_disk: bool = True
) -> Written:
    """``finish_files``, and what there is to say; ``harmed`` are the tensors with weights not finite.

    Headers of files that are not ``on_disk`` are not read back.
    """
    names = tuple(tensor.name for tensor in plan.tensors if tensor.name in harmed)
    sizes = tuple(sum(file.size for file in model.files) for model in plan.models)
    return Written(finish_files(plan) if on_disk else sizes, names, kernels)


def _reread(model: BegunModel) -> int:
    """The size of a model's files, once they have been found to be as planned."""
    for part, file in enumerate(model.files):
        expected = tuple(replace(info, part=0) for info in model.tensors if info.part == part)
        try:
            header = read_header(file.path)
            same = header.tensors == expected and header.size == file.size
        except GgufError as error:
            file.path.stat()  # where it has been removed, this says so
            raise _unlike(file.path) from error
        if not same:
            raise _unlike(file.path)
    return sum(file.size for file in model.files)


def _unlike(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(f"{path}: the bytes read back differ from those written", hint="check the disk")
