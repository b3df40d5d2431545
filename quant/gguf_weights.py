"""The weights of a GGUF file, or of a model in several, read a few rows at a time.

Read by position, never mapped: a file that shrinks meanwhile gives an error, not a signal that ends the
process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..core.byte_source import ByteSource, LocalFile, NotAFile, Opener
from ..core.errors import EnvironmentProblem, GgufError, UsageError
from ..core.gguf_file import BLOCKS, GgufHeader, TensorInfo, unreadable
from ..core.gguf_split import GgufModel, read_model
from ..core.input_files import InputFile
from ..core.tensor import Array, DType, Reader, Tensor
from .formats import Format, format_of_type
from .ggml import Bytes, can_dequantize, dequantize

_AGAIN = (
    "do not change the file while it is being read; if nothing changed it, the disk or the network is at "
    "fault"
)


class GgufFile:
    """An open model: ``path`` (of its first file), its checked ``header``, and rows of its tensors on demand.

    A context manager; reading is safe from several threads.
    """

    def __init__(self, model: GgufModel, sources: Sequence[ByteSource]) -> None:
        self.path, self.paths = model.paths[0], model.paths
        self.header: GgufHeader = model.header
        parts = zip(model.paths, sources, model.parts, strict=True)
        self._parts = [_Part(path, source, header.data_offset) for path, source, header in parts]

    def __enter__(self) -> GgufFile:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, which is open as long as tensors that were asked for before are held."""
        self._parts.clear()

    def only(self, names: Collection[str]) -> GgufFile:
        """The same file, as if it held no other tensors than those."""
        narrowed = copy.copy(self)
        kept = tuple(info for info in self.header.tensors if info.name in names)
        narrowed.header = replace(self.header, tensors=kept)
        return narrowed

    def opened(self) -> list[InputFile]:
        """Its files as they are read."""
        return [InputFile(part.path, part.opener) for part in self._parts]

    def read(self, info: TensorInfo, start: int, stop: int) -> Bytes:
        """The bytes of rows ``start..stop`` of the first axis.

        Raises UsageError where they are no whole blocks, GgufError where the file is not what it was when
        it was opened, EnvironmentProblem where the disk fails.
        """
        return _read(self._parts[info.part], info, start, stop)

    def reader(self, info: TensorInfo) -> Reader:
        """What reads the bytes of a tensor's rows. It can be pickled, and takes no header along."""
        return partial(_read, self._parts[info.part], info)

    def floats_reader(self, info: TensorInfo) -> Reader:
        """The same for the weights as float32; it raises GgufError where ``format`` does."""
        return partial(_read_floats, self.path, self._parts[info.part], info)

    def tensor(self, info: TensorInfo) -> Tensor:
        """The weights as float32, dequantized when rows are asked for.

        Raises GgufError naming the tensor if ggml cannot turn its format into floats.
        """
        granule = self.format(info).block_size if len(info.shape) == 1 else 1
        read = self.floats_reader(info)
        return Tensor(
            info.name, info.shape, DType.F32, read, granule, origin=f"{self.path}: tensor {info.name}"
        )

    def format(self, info: TensorInfo) -> Format:
        """The format of a tensor; GgufError naming the tensor if ggml cannot turn it into floats."""
        return _format(self.path, info)


@dataclass(frozen=True)
class _Part:
    """One file of a model, open, and where its data begins."""

    path: Path
    source: ByteSource
    data_offset: int

    def opener(self, path: Path) -> ByteSource:
        """For readers that open: what is open already."""
        return self.source


def _read(part: _Part, info: TensorInfo, start: int, stop: int) -> Bytes:
    """See ``GgufFile.read``."""
    first, last = _place(info, start), _place(info, stop)
    out = np.empty(last - first, np.uint8)
    path, view, offset = part.path, memoryview(out.data), part.data_offset + info.offset + first
    while view:
        try:
            count = part.source.read_into(view, offset)
        except OSError as error:
            raise EnvironmentProblem(
                f"{path}: cannot read tensor {info.name} at byte {offset}: {error.strerror}"
            ) from error
        if count == 0:
            raise GgufError(
                f"{path}: ends at byte {offset}, within tensor {info.name}; it was longer when it was opened",
                hint=_AGAIN,
            )
        view, offset = view[count:], offset + count
    if part.source.identity_now() != part.source.identity:
        raise GgufError(f"{path}: changed while tensor {info.name} was read", hint=_AGAIN)
    return out


def _read_floats(path: Path, part: _Part, info: TensorInfo, start: int, stop: int) -> Array:
    data = _read(part, info, start, stop)
    return dequantize(_format(path, info), data, (stop - start, *info.shape[1:]))


def _format(path: Path, info: TensorInfo) -> Format:
    format = format_of_type(info.ggml_type)
    if format is None or not info.shape or not can_dequantize(format):
        kind = format.display if format else f"number {info.ggml_type}"
        raise GgufError(
            f"{path}: tensor {info.name} {list(info.shape)} has the type {kind}, "
            "which ggml cannot turn into weights",
            hint="the file is damaged or was made for another program",
        )
    return format


def _place(info: TensorInfo, row: int) -> int:
    """Where a row of the first axis begins, in bytes from the tensor's start."""
    if not 0 <= row <= info.shape[0]:
        raise UsageError(f"tensor {info.name} has {info.shape[0]} rows, so there is no row {row}")
    block, size = BLOCKS[info.ggml_type]
    weights = row * math.prod(info.shape[1:])
    if weights % block and row != info.shape[0]:
        raise UsageError(f"row {row} of tensor {info.name} does not begin at a block of {block} weights")
    return weights // block * size


def open_gguf(path: Path, opener: Opener = LocalFile) -> GgufFile:
    """Open a GGUF file, with the other parts of its model, and check the headers; no weight is read.

    Raises GgufError where it is no whole GGUF or a part is missing, EnvironmentProblem where permission is.
    """
    model = read_model(path, opener)
    opened = [_open(*part, opener) for part in zip(model.paths, model.parts, strict=True)]
    return GgufFile(model, opened)


def _open(path: Path, header: GgufHeader, opener: Opener) -> ByteSource:
    try:
        source = opener(path)
    except OSError as error:
        raise unreadable(path, error) from error
    except NotAFile as error:
        raise GgufError(f"{path}: changed while it was opened", hint=_AGAIN) from error
    if source.identity != header.identity:
        raise GgufError(f"{path}: changed while it was opened", hint=_AGAIN)
    return source
