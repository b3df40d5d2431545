"""Writing GGUF: the plan first, then one pass over the weights into one or several models' files.

Slabs of rows are read, converted and written at their known places by a few threads. No more than a slab
per thread is ever in memory, and the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.cores import available_cores
from ..core.errors import EnvironmentProblem, GgufError, NonFiniteError
from ..core.files import explained
from ..core.gguf_file import ALIGNMENT, TensorInfo, aligned, header_bytes, read_header, tensor_bytes
from ..core.gguf_pairs import encode_pairs
from ..core.gguf_split import BY_SIZE, part_path, placed, split_pairs
from ..core.model import MetadataValue, Model, Note
from ..core.progress import Progress, silent
from ..core.tensor import Tensor
from ..core.vocabulary import gguf_keys
from ..quant import native
from ..quant.formats import BF16, F16, F32, Format
from ..quant.ggml import Floats
from ..quant.importance import Importance
from ..quant.slabs import HALF_MAX, Scratch, Slab, convert_slab, count_nonfinite, has_overflowed
from .pieces import Rows, cut, work_through

_PASSED_THROUGH = frozenset(format.ggml_type for format in (F32, F16, BF16))  # by convert_slab, bit by bit


@dataclass(frozen=True)
class FilePlan:
    """One GGUF to be: every key, and every tensor with its format, size and place.

    ``path`` is the file's, or what the names of a model in several files are made of. ``pairs`` are all keys
    as bytes where they come from a file; else they are ``arch`` and ``metadata``. ``split_keys`` are those of
    parts, in the order they are written.
    """

    path: Path
    arch: str
    metadata: Mapping[str, MetadataValue]
    formats: tuple[Format, ...]
    tensors: tuple[TensorInfo, ...]
    pairs: tuple[bytes, ...] | None = None
    split_keys: tuple[str, ...] = BY_SIZE
    alignment: int = ALIGNMENT

    @property
    def parts(self) -> list[tuple[TensorInfo, ...]]:
        """The tensors of each file."""
        count = self.tensors[-1].part + 1 if self.tensors else 1
        return [tuple(info for info in self.tensors if info.part == part) for part in range(count)]

    @property
    def paths(self) -> list[Path]:
        """The files, the one that is given to llama.cpp first."""
        count = len(self.parts)
        return [part_path(self.path, part, count) for part in range(count)]

    @property
    def data_bytes(self) -> int:
        """Bytes of the data sections."""
        return sum(self._data_bytes(infos) for infos in self.parts)

    def layout(self) -> list[tuple[bytes, int]]:
        """For each file what stands before the data, and how many bytes of data follow."""
        parts, pairs = self.parts, self.pairs
        if pairs is None:
            pairs = tuple(encode_pairs({"general.architecture": self.arch, **self.metadata}))
        made = []
        unusual = [] if self.alignment == ALIGNMENT else encode_pairs({"general.alignment": self.alignment})
        for part, infos in enumerate(parts):
            own = split_pairs(part, len(parts), len(self.tensors), self.split_keys)
            keys = [*(unusual if part else pairs), *own]
            made.append((header_bytes(keys, infos, self.alignment), self._data_bytes(infos)))
        return made

    def _data_bytes(self, infos: Sequence[TensorInfo]) -> int:
        return infos[-1].offset + aligned(infos[-1].nbytes, self.alignment) if infos else 0


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


def plan_file(
    path: Path,
    model: Model,
    formats: Sequence[Format],
    keys: Mapping[str, MetadataValue],
    split_size: int | None = None,
) -> FilePlan:
    """Sizes and offsets; ``formats`` go with ``model.tensors``, ``keys`` are added to the model's.

    With ``split_size`` there are files of at most so many bytes of weights.
    """
    vocab = {} if model.vocab is None else gguf_keys(model.vocab)
    metadata = {**model.metadata, **keys, **model.hparams, **vocab}
    infos = [
        TensorInfo(tensor.name, tensor.shape, format.ggml_type, tensor_bytes(tensor.shape, format.ggml_type))
        for tensor, format in zip(model.tensors, formats, strict=True)
    ]
    return FilePlan(path, model.arch, metadata, tuple(formats), placed(infos, split_size))


def write_files(
    tensors: Sequence[Tensor],
    plans: Sequence[FilePlan],
    temporaries: Sequence[Path],
    *,
    threads: int | None = None,
    allow_nan: bool = False,
    importance: Importance | None = None,
    progress: Progress = silent,
) -> Written:
    """Write the files of all plans to ``temporaries``, from one read of the tensors, and read them back.

    ``temporaries`` stand for the ``paths`` of each plan, one plan's after the other's. ``importance`` weighs
    the columns of the matrices it knows, in every quantized format. Raises NonFiniteError (unless
    ``allow_nan``), EnvironmentProblem and what reading the tensors raises.
    """
    check_room((plan.path, plan.data_bytes) for plan in plans)
    harmed: set[str] = set()
    threads = threads or available_cores()
    _write_data(tensors, plans, temporaries, threads, allow_nan, importance, harmed, progress)
    left = iter(temporaries)
    sizes = [_reread(plan, [next(left) for _ in plan.paths]) for plan in plans]
    not_finite = tuple(tensor.name for tensor in tensors if tensor.name in harmed)
    return Written(
        tuple(sizes), not_finite, native.notes(format for plan in plans for format in plan.formats)
    )


def _write_data(
    tensors: Sequence[Tensor],
    plans: Sequence[FilePlan],
    temporaries: Sequence[Path],
    threads: int,
    allow_nan: bool,
    importance: Importance | None,
    harmed: set[str],
    progress: Progress,
) -> None:
    with contextlib.ExitStack() as stack:
        left = iter(temporaries)
        opened = [[_begun(stack, next(left), *part) for part in plan.layout()] for plan in plans]

        def write(rows: Rows, scratch: Scratch) -> int:
            tensor = tensors[rows.index]
            formats = [plan.formats[rows.index] for plan in plans]
            slab = _slab(tensor, rows, formats, _of_rows(importance, tensor, rows), scratch)
            if not slab.finite or slab.overflowed or slab.impossible:
                if not allow_nan or slab.impossible:
                    raise harmful(slab, tensor, rows)
                harmed.add(tensor.name)
            for plan, files, data in zip(plans, opened, slab.data, strict=True):
                info = plan.tensors[rows.index]
                handle, start = files[info.part]
                write_at(handle, data.data, start + info.offset + info.nbytes * rows.start // tensor.rows)
            return (rows.stop - rows.start) * tensor.row_elements * tensor.dtype.itemsize

        slow = {i for i in range(len(tensors)) if any(plan.formats[i].block_size == 256 for plan in plans)}
        total = sum(tensor.nbytes for tensor in tensors)
        work_through(
            cut(tensors, slow), write, threads=threads, stage="write", total=total, progress=progress
        )


def _of_rows(importance: Importance | None, tensor: Tensor, rows: Rows) -> Floats | None:
    """Importance of the columns; of a stack of matrices those of the matrices ``rows`` are."""
    if importance is None or len(tensor.shape) < 2:
        return None
    columns = tensor.shape[-1]
    if len(tensor.shape) == 2:
        return importance.of(tensor.name, columns)
    found = importance.of(tensor.name, tensor.rows * columns)
    return None if found is None else found[rows.start * columns : rows.stop * columns]


def _begun(stack: contextlib.ExitStack, path: Path, header: bytes, data_bytes: int) -> tuple[int, int]:
    """A file of its final length with its header, open for writing, and where its data begins."""
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    stack.callback(os.close, handle)
    os.truncate(handle, len(header) + data_bytes)
    write_at(handle, memoryview(header), 0)
    return handle, len(header)


def _slab(
    tensor: Tensor, rows: Rows, formats: Sequence[Format], importance: Floats | None, scratch: Scratch
) -> Slab:
    """Rows in each of ``formats``; those a file holds in that format already are copied."""
    stored = None if tensor.stored and tensor.stored.ggml_type in _PASSED_THROUGH else tensor.stored
    others = [format for format in formats if stored is None or format.ggml_type != stored.ggml_type]
    slab = Slab((), 0.0)
    if others:
        slab = convert_slab(tensor.read(rows.start, rows.stop), tensor.dtype, others, scratch, importance)
    if stored is None or len(others) == len(formats):
        return slab
    copied, made = stored.read(rows.start, rows.stop), iter(slab.data)
    same = [format.ggml_type == stored.ggml_type for format in formats]
    if has_overflowed(formats[same.index(True)], copied):
        slab = replace(slab, largest=math.inf)
    return replace(slab, data=tuple(copied if kept else next(made) for kept in same))


def write_at(handle: int, data: memoryview, offset: int) -> None:
    """All of ``data`` at ``offset`` of an open file; safe from several threads."""
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def check_room(files: Iterable[tuple[Path, int]]) -> None:
    """Raise EnvironmentProblem unless files of so many bytes fit where they are to be."""
    needed: dict[Path, int] = {}
    for path, size in files:
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        needed[folder] = needed.get(folder, 0) + size
    for folder, size in needed.items():
        with explained(folder):
            free = shutil.disk_usage(folder).free
        if size > free:
            raise EnvironmentProblem(
                f"no space left: {folder} has {free / 1e6:,.1f} MB free, {size / 1e6:,.1f} MB are needed",
                hint="free some space or write to another disk with -o",
            )


def _reread(plan: FilePlan, paths: Sequence[Path]) -> int:
    """The size of a plan's files, once they have been found to be as planned."""
    total = 0
    for path, infos, (head, data_bytes) in zip(paths, plan.parts, plan.layout(), strict=True):
        expected = tuple(replace(info, part=0) for info in infos)
        try:
            header = read_header(path)
            same = header.tensors == expected and header.size == len(head) + data_bytes
        except GgufError as error:
            path.stat()  # where it has been removed, this says so
            raise _unlike(path) from error
        if not same:
            raise _unlike(path)
        total += header.size
    return total


def _unlike(path: Path) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path}: what was written does not read back as planned", hint="check the disk"
    )


def harmful(slab: Slab, tensor: Tensor, rows: Rows) -> NonFiniteError:
    """What to raise for a slab with weights that are not finite or do not fit a format."""
    where = tensor.origin or tensor.name
    if not slab.finite:
        hint = "--allow-nan converts it all the same"
        if slab.impossible:
            hint = f"libggml cannot write such weights as {slab.impossible[0].display}"
        nans, infinities = count_nonfinite(tensor.read(rows.start, rows.stop), tensor.dtype)
        return NonFiniteError(
            f"{where}: {nans} NaN and {infinities} infinite weights in rows {rows.start} to {rows.stop - 1}",
            hint=f"the checkpoint is damaged or its training diverged; {hint}",
        )
    names = ", ".join(format.name for format in (*slab.impossible, *slab.overflowed))
    if slab.largest <= HALF_MAX:
        return NonFiniteError(
            f"{where}: the importance data give rows {rows.start} to {rows.stop - 1} scales beyond the "
            f"range of {names}",
            hint="the data have zeros or extreme numbers where the weights matter: make them of more text",
        )
    return NonFiniteError(
        f"{where}: weights up to {slab.largest:.6g} in rows {rows.start} to {rows.stop - 1} "
        f"are beyond the range of {names}",
        hint="convert to bf16 or f32" + ("" if slab.impossible else "; --allow-nan writes them as infinite"),
    )
