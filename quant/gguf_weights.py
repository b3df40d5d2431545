"""The weights of a GGUF file, or of a model in several, read a few rows at a time.

Read by position, never mapped: a file that shrinks meanwhile gives an error, not a signal that ends the
process.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from ..core.errors import EnvironmentProblem, GgufError, UsageError
from ..core.gguf_file import BLOCKS, GgufHeader, TensorInfo, unreadable
from ..core.gguf_split import GgufModel, read_model
from ..core.input_files import InputFile, identity_of
from ..core.tensor import Array, DType, Tensor
from .formats import Format, format_of_type
from .ggml import Bytes, can_dequantize, dequantize

_AGAIN = "do not touch the file while it is read; if nothing did, the disk or the network is at fault"


class GgufFile:
    """An open model: ``path`` (of its first file), its checked ``header``, and rows of its tensors on demand.

    A context manager; reading is safe from several threads.
    """

    def __init__(self, model: GgufModel, handles: Sequence[int]) -> None:
        self.path, self.paths = model.paths[0], model.paths
        self.header: GgufHeader = model.header
        self._starts = [part.data_offset for part in model.parts]
        self._handles = list(handles)
        self._stamps = [_stamp(os.fstat(handle)) for handle in handles]

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing can be read of it any more."""
        while self._handles:
            os.close(self._handles.pop())

    def opened(self) -> list[InputFile]:
        """Its files as they are read, with descriptors of their own."""
        return [InputFile.adopted(*each) for each in zip(self.paths, self._handles, strict=True)]

    def read(self, info: TensorInfo, start: int, stop: int) -> Bytes:
        """The bytes of rows ``start..stop`` of the first axis.

        Raises UsageError where they are no whole blocks, GgufError where the file is not what it was when
        it was opened, EnvironmentProblem where the disk fails.
        """
        first, last = self._place(info, start), self._place(info, stop)
        out = np.empty(last - first, np.uint8)
        path, handle = self.paths[info.part], self._handles[info.part]
        view, offset = memoryview(out.data), self._starts[info.part] + info.offset + first
        while view:
            try:
                count = os.preadv(handle, [view], offset)
            except OSError as error:
                raise EnvironmentProblem(
                    f"{path}: cannot read tensor {info.name} at byte {offset}: {error.strerror}"
                ) from error
            if count == 0:
                raise GgufError(
                    f"{path}: ends at byte {offset}, within tensor {info.name}; "
                    "it was longer when it was opened",
                    hint=_AGAIN,
                )
            view, offset = view[count:], offset + count
        if _stamp(os.fstat(handle)) != self._stamps[info.part]:
            raise GgufError(f"{path}: changed while tensor {info.name} was read", hint=_AGAIN)
        return out

    def tensor(self, info: TensorInfo) -> Tensor:
        """The weights as float32, dequantized when rows are asked for.

        Raises GgufError naming the tensor if ggml cannot turn its format into floats.
        """
        format = self.format(info)

        def read(start: int, stop: int) -> Array:
            return dequantize(format, self.read(info, start, stop), (stop - start, *info.shape[1:]))

        granule = format.block_size if len(info.shape) == 1 else 1
        return Tensor(
            info.name, info.shape, DType.F32, read, granule, origin=f"{self.path}: tensor {info.name}"
        )

    def format(self, info: TensorInfo) -> Format:
        """The format of a tensor; GgufError naming the tensor if ggml cannot turn it into floats."""
        format = format_of_type(info.ggml_type)
        if format is None or not info.shape or not can_dequantize(format):
            kind = format.display if format else f"number {info.ggml_type}"
            raise GgufError(
                f"{self.path}: tensor {info.name} {list(info.shape)} has the type {kind}, "
                "which ggml cannot turn into weights",
                hint="the file is damaged, or was made for another program",
            )
        return format

    def _place(self, info: TensorInfo, row: int) -> int:
        """Where a row of the first axis begins, in bytes from the tensor's start."""
        if not 0 <= row <= info.shape[0]:
            raise UsageError(f"tensor {info.name} has {info.shape[0]} rows, no row {row}")
        block, size = BLOCKS[info.ggml_type]
        weights = row * math.prod(info.shape[1:])
        if weights % block and row != info.shape[0]:
            raise UsageError(f"row {row} of tensor {info.name} does not begin at a block of {block} weights")
        return weights // block * size


def open_gguf(path: Path) -> GgufFile:
    """Open a GGUF file, with the other parts of its model, and check the headers; no weight is read.

    Raises GgufError where it is no whole GGUF or a part is missing, EnvironmentProblem where permission is.
    """
    model = read_model(path)
    with contextlib.ExitStack() as undo:
        handles = []
        for each, header in zip(model.paths, model.parts, strict=True):
            handles.append(_open(each, header))
            undo.callback(os.close, handles[-1])
        undo.pop_all()
    return GgufFile(model, handles)


def _open(path: Path, header: GgufHeader) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise unreadable(path, error) from error
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or identity_of(found) != header.identity:
        os.close(handle)
        raise GgufError(f"{path}: changed while it was opened", hint=_AGAIN)
    return handle


def _stamp(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns
