"""What a GGUF writer works from: files that were begun, and what goes where in them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.cores import available_cores
from ..core.errors import EnvironmentProblem
from ..core.gguf_file import TensorInfo
from ..core.outlet import Outlet
from ..core.progress import Progress, silent
from ..core.system_files import open_to_write
from ..core.tensor import Tensor
from ..quant.formats import Format
from ..quant.importance import Importance
from .pieces import Piece, cut, with_checksums


@dataclass(frozen=True)
class BegunFile:
    """A file with its header, in its final length of ``size`` bytes; its data begins at ``data_offset``."""

    path: Path
    data_offset: int
    size: int


@dataclass(frozen=True)
class BegunModel:
    """The files of one model, and the format and place of each tensor in them."""

    files: tuple[BegunFile, ...]
    formats: tuple[Format, ...]
    tensors: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class WritePlan:
    """What goes where, from one read of ``tensors`` into all ``models``.

    It can be pickled and sent to other processes that see the same files, to write some of its pieces.
    ``importance`` weighs the columns of the matrices it knows; ``allow_nan`` lets weights through that are
    not finite.
    """

    tensors: tuple[Tensor, ...]
    models: tuple[BegunModel, ...]
    importance: Importance | None = None
    allow_nan: bool = False

    @property
    def files(self) -> list[BegunFile]:
        """The files of all models."""
        return [file for model in self.models for file in model.files]

    def pieces(self) -> list[Piece]:
        """All there is to write: whichever process writes a piece, and whenever, the bytes are the same."""
        formats = [[model.formats[i] for model in self.models] for i in range(len(self.tensors))]
        slow = {i for i, each in enumerate(formats) if any(format.block_size == 256 for format in each)}
        return cut(self.tensors, slow)

    def missing(self, pieces: Sequence[Piece], outlet: Outlet) -> list[Piece]:
        """Those of the pieces that some file at an outlet lacks."""
        numbers = itertools.count()
        opened = [[(next(numbers), file.data_offset) for file in model.files] for model in self.models]
        pairs = list(zip(self.models, opened, strict=True))
        return [
            rows
            for rows in pieces
            if not all(
                outlet.has(*place_of(model, files, self.tensors[rows.index], rows)) for model, files in pairs
            )
        ]


@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[int]:
    handle = open_to_write(path)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def as_begun(file: BegunFile) -> Iterator[int]:
    with opened_file(file.path) as handle:
        size = os.fstat(handle).st_size
        if size != file.size:
            raise EnvironmentProblem(
                f"{file.path} has {size} bytes, expected {file.size}: it was replaced while it was "
                "being written",
                hint="do not touch the files until they are complete",
            )
        yield handle


def sound_pieces(
    plan: WritePlan,
    checks: Mapping[Piece, int],
    *,
    pieces: Sequence[Piece] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> set[Piece]:
    """The pieces whose bytes in all files have the checksum a journal has of them (``Done.checks``).

    Only ``pieces`` of the plan are looked at where they are given. Raises EnvironmentProblem where a file is
    not as it was begun, and OSError.
    """
    with contextlib.ExitStack() as stack:
        opened = opened_models(plan, stack)

        def places(rows: Piece) -> list[tuple[int, int, int]]:
            tensor = plan.tensors[rows.index]
            pairs = zip(plan.models, opened, strict=True)
            return [place_of(model, files, tensor, rows) for model, files in pairs]

        pieces = plan.pieces() if pieces is None else pieces
        threads = threads or available_cores()
        return with_checksums(pieces, checks, places, threads=threads, progress=progress)


OpenFiles = list[tuple[int, int]]  # descriptors, and where the data begin


def opened_models(plan: WritePlan, stack: contextlib.ExitStack) -> list[OpenFiles]:
    return [
        [(stack.enter_context(as_begun(file)), file.data_offset) for file in model.files]
        for model in plan.models
    ]


def place_of(model: BegunModel, files: OpenFiles, tensor: Tensor, rows: Piece) -> tuple[int, int, int]:
    """Where a piece lies: descriptor, offset, bytes."""
    info = model.tensors[rows.index]
    handle, start = files[info.part]
    first, last = (info.nbytes * row // tensor.rows for row in (rows.start, rows.stop))
    return handle, start + info.offset + first, last - first
