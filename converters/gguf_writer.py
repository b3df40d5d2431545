"""Writing GGUF: the plan first, then one pass over the weights into one or several files.

Slabs of rows are read, converted and written at their known places by a few threads. No more than a slab
per thread is ever in memory, and the bytes do not depend on the number of threads.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.cores import available_cores
from ..core.errors import EnvironmentProblem, GgufError, NonFiniteError
from ..core.files import explained
from ..core.gguf_file import TensorInfo, aligned, read_header, tensor_bytes, write_header
from ..core.model import MetadataValue, Model
from ..core.progress import Progress, silent
from ..core.tensor import Tensor
from ..core.vocabulary import gguf_keys
from ..quant.formats import Format
from ..quant.slabs import Scratch, Slab, convert_slab, count_nonfinite
from .pieces import Rows, cut, work_through


@dataclass(frozen=True)
class FilePlan:
    """One GGUF to be: every key, and every tensor with its format, size and place."""

    path: Path
    arch: str
    metadata: Mapping[str, MetadataValue]
    formats: tuple[Format, ...]
    tensors: tuple[TensorInfo, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of the data section."""
        return self.tensors[-1].offset + aligned(self.tensors[-1].nbytes) if self.tensors else 0


@dataclass(frozen=True)
class Written:
    """Sizes of the files in bytes, and the tensors in which NaN or infinite weights were let through."""

    sizes: tuple[int, ...]
    not_finite: tuple[str, ...] = ()


def plan_file(
    path: Path, model: Model, formats: Sequence[Format], keys: Mapping[str, MetadataValue]
) -> FilePlan:
    """Sizes and offsets; ``formats`` go with ``model.tensors``, ``keys`` are added to the model's."""
    vocab = {} if model.vocab is None else gguf_keys(model.vocab)
    metadata = {**model.metadata, **keys, **model.hparams, **vocab}
    infos, offset = [], 0
    for tensor, format in zip(model.tensors, formats, strict=True):
        nbytes = tensor_bytes(tensor.shape, format.ggml_type)
        infos.append(TensorInfo(tensor.name, tensor.shape, format.ggml_type, nbytes, offset))
        offset += aligned(nbytes)
    return FilePlan(path, model.arch, metadata, tuple(formats), tuple(infos))


def write_files(
    tensors: Sequence[Tensor],
    plans: Sequence[FilePlan],
    temporaries: Sequence[Path],
    *,
    threads: int | None = None,
    allow_nan: bool = False,
    progress: Progress = silent,
) -> Written:
    """Write each plan to its path of ``temporaries``, all from one read of the tensors, and read them back.

    Raises NonFiniteError (unless ``allow_nan``), EnvironmentProblem and what reading the tensors raises.
    """
    _check_room(plans)
    harmed: set[str] = set()
    _write_data(tensors, plans, temporaries, threads or available_cores(), allow_nan, harmed, progress)
    sizes = [_reread(plan, temporary) for plan, temporary in zip(plans, temporaries, strict=True)]
    return Written(tuple(sizes), tuple(tensor.name for tensor in tensors if tensor.name in harmed))


def _write_data(
    tensors: Sequence[Tensor],
    plans: Sequence[FilePlan],
    temporaries: Sequence[Path],
    threads: int,
    allow_nan: bool,
    harmed: set[str],
    progress: Progress,
) -> None:
    starts = [
        write_header(temporary, plan.arch, plan.metadata, plan.tensors)
        for plan, temporary in zip(plans, temporaries, strict=True)
    ]
    with contextlib.ExitStack() as stack:
        handles = [stack.enter_context(open(path, "r+b", buffering=0)).fileno() for path in temporaries]
        for plan, handle, start in zip(plans, handles, starts, strict=True):
            os.truncate(handle, start + plan.data_bytes)

        def write(rows: Rows, scratch: Scratch) -> int:
            tensor = tensors[rows.index]
            slab = convert_slab(
                tensor.read(rows.start, rows.stop),
                tensor.dtype,
                [plan.formats[rows.index] for plan in plans],
                scratch,
            )
            if not slab.finite or slab.overflowed:
                if not allow_nan:
                    raise _harmful(slab, tensor, rows)
                harmed.add(tensor.name)
            for plan, handle, start, data in zip(plans, handles, starts, slab.data, strict=True):
                info = plan.tensors[rows.index]
                row_bytes = info.nbytes // tensor.rows
                _write_at(handle, data.data, start + info.offset + rows.start * row_bytes)
            return (rows.stop - rows.start) * tensor.row_elements * tensor.dtype.itemsize

        slow = {i for i in range(len(tensors)) if any(plan.formats[i].block_size == 256 for plan in plans)}
        total = sum(tensor.nbytes for tensor in tensors)
        work_through(
            cut(tensors, slow), write, threads=threads, stage="write", total=total, progress=progress
        )


def _write_at(handle: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(handle, data, offset)
        data, offset = data[written:], offset + written


def _check_room(plans: Sequence[FilePlan]) -> None:
    needed: dict[Path, int] = {}
    for plan in plans:
        folder = next(parent for parent in plan.path.absolute().parents if parent.exists())
        needed[folder] = needed.get(folder, 0) + plan.data_bytes
    for folder, size in needed.items():
        with explained(folder):
            free = shutil.disk_usage(folder).free
        if size > free:
            raise EnvironmentProblem(
                f"no space left: {folder} has {free / 1e9:.2f} GB free, {size / 1e9:.2f} GB are needed",
                hint="free some space or write to another disk with -o",
            )


def _reread(plan: FilePlan, path: Path) -> int:
    header = read_header(path)
    if header.tensors != plan.tensors or header.size != header.data_offset + plan.data_bytes:
        raise GgufError(f"{path}: what was written does not read back as planned", hint="check the disk")
    return header.size


def _harmful(slab: Slab, tensor: Tensor, rows: Rows) -> NonFiniteError:
    where = tensor.origin or tensor.name
    if not slab.finite:
        nans, infinities = count_nonfinite(tensor.read(rows.start, rows.stop), tensor.dtype)
        return NonFiniteError(
            f"{where}: {nans} NaN and {infinities} infinite weights in rows {rows.start} to {rows.stop - 1}",
            hint="the checkpoint is damaged or its training diverged; --allow-nan converts it all the same",
        )
    names = ", ".join(format.name for format in slab.overflowed)
    return NonFiniteError(
        f"{where}: weights up to {slab.largest:.6g} in rows {rows.start} to {rows.stop - 1} "
        f"are beyond the range of {names}",
        hint="convert to bf16 or f32; --allow-nan writes them as infinite",
    )
