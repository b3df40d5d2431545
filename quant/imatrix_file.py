"""Files of activations, llama.cpp's imatrix: read with every number checked, written as llama-imatrix writes.

The GGUF ones hold for every matrix the sums of its squared inputs (``NAME.in_sum2``) and the tokens counted
(``NAME.counts``), the older ones (``.dat``) means times the number of chunks. Reading follows
common/imatrix-loader.cpp, writing tools/imatrix/imatrix.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import CheckpointError, GgufError, InputError
from ..core.files import atomic_file, explained
from ..core.gguf_file import GgufHeader, TensorInfo, aligned, read_header, shown, write_header
from ..core.input_files import InputFile, refuse_lfs_pointer
from .formats import F32

Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.int64]

DATASETS, CHUNKS, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
_SUMS, _COUNTS = ".in_sum2", ".counts"
_MOST_BYTES = 1 << 30  # a model of 70 billion weights has 25 MB, stacks of experts some hundred
_MOST_COUNTED = 1 << 53
_MOST_ENTRIES = 1 << 17
_LONGEST_NAME = 512
_AGAIN = "make it again with kconv imatrix or llama-imatrix"


@dataclass(frozen=True)
class ActivationSums:
    """What was counted, by GGUF name of the matrix.

    ``sums`` of squares are float32 ``(columns,)``, for a stack of experts ``(experts * columns,)``;
    ``counts`` the tokens, one number or one for each expert. ``datasets`` are the texts, ``chunks`` of
    ``chunk_size`` tokens how much was read of them.
    """

    sums: Mapping[str, Floats]
    counts: Mapping[str, Counts]
    datasets: tuple[str, ...]
    chunks: int
    chunk_size: int


def read_imatrix(path: Path) -> ActivationSums:
    """What an imatrix file of either format holds.

    Raises InputError for what is no such file, is truncated, or holds numbers that cannot be sums of squares
    or counts, EnvironmentProblem where the machine refuses.
    """
    try:
        file = InputFile(path)
        head = file.read(0, min(file.size, 100))
        refuse_lfs_pointer(path, head)
        if file.size > _MOST_BYTES and not head.startswith(b"GGUF"):
            raise _refused(path, f"has {file.size:,} bytes, expected at most {_MOST_BYTES >> 20} MiB")
        read = _of_gguf(file) if head.startswith(b"GGUF") else _of_legacy(path, file.read(0, file.size))
    except (CheckpointError, GgufError) as error:  # they advise on checkpoints and models
        raise InputError(f"imatrix: {error.message}", hint=_AGAIN) from error
    for name in read.sums:
        _check(path, name, read.sums[name], read.counts[name])
    return read


def write_imatrix(
    path: Path,
    activations: ActivationSums,
    *,
    arch: str = "",
    force: bool = False,
    keys: Mapping[str, Any] = MappingProxyType({}),
    more: Sequence[tuple[TensorInfo, Callable[[Any], None]]] = (),
) -> None:
    """Write the GGUF format, tensors in order of their names; ``arch`` says what model they are of.

    ``keys`` and ``more``, tensors with what writes them to a file, follow. Raises OutputExists and
    EnvironmentProblem.
    """
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    for name in sorted(activations.sums, key=str.encode):
        counts = activations.counts[name].astype(np.float32)
        arrays[name + _SUMS] = activations.sums[name].reshape(len(counts), -1)
        arrays[name + _COUNTS] = counts.reshape(-1, 1)
    every: dict[str, Any] = {
        "general.type": "imatrix",
        DATASETS: activations.datasets,
        CHUNKS: activations.chunks,
        CHUNK_SIZE: activations.chunk_size,
        **keys,
    }
    infos = [TensorInfo(name, values.shape, F32.ggml_type, values.nbytes) for name, values in arrays.items()]
    with atomic_file(path, force=force) as temporary:
        write_header(temporary, arch, every, [*infos, *(info for info, _ in more)])
        with explained(path), temporary.open("ab") as out:
            for values in arrays.values():
                data = np.ascontiguousarray(values, "<f4").tobytes()
                out.write(data.ljust(aligned(len(data)), b"\0"))
            for info, write in more:
                write(out)
                out.write(bytes(aligned(info.nbytes) - info.nbytes))


def _of_gguf(file: InputFile) -> ActivationSums:
    header = read_header(file.path)
    by_name = {info.name: info for info in header.tensors}
    names = [name.removesuffix(_SUMS) for name in by_name if name.endswith(_SUMS)]
    if not names:
        raise _refused(file.path, f"contains no activations (tensors named *{_SUMS}): it is not an imatrix")
    lacking = [name + _COUNTS for name in names if name + _COUNTS not in by_name]
    lacking += [key for key in (DATASETS, CHUNKS, CHUNK_SIZE) if key not in header.metadata]
    if lacking:
        raise _refused(file.path, f"{shown(lacking[0])} is missing")
    read = sum(by_name[name + _SUMS].nbytes for name in names)
    if read > _MOST_BYTES:
        raise _refused(
            file.path, f"has {read:,} bytes of activations, expected at most {_MOST_BYTES >> 20} MiB"
        )
    sums, counts = {}, {}
    for name in names:
        sums[name] = _floats(file, header, by_name[name + _SUMS])
        rounded = np.floor(_floats(file, header, by_name[name + _COUNTS]).astype(np.float64) + 0.5)
        if not ((rounded >= 0) & (rounded <= _MOST_COUNTED)).all():
            raise _refused(file.path, f"{shown(name + _COUNTS)} is not a number of tokens")
        counts[name] = rounded.astype(np.int64)
    datasets = header.metadata[DATASETS]
    if not isinstance(datasets, tuple) or not all(isinstance(text, str) for text in datasets):
        raise _refused(file.path, f"{DATASETS} is {shown(datasets)}, expected a list of names")
    numbers = (_number(file.path, header, CHUNKS), _number(file.path, header, CHUNK_SIZE))
    return ActivationSums(sums, counts, datasets, *numbers)


def _number(path: Path, header: GgufHeader, key: str) -> int:
    value = header.metadata[key]
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise _refused(path, f"{key} is {shown(value)}, expected a whole number")
    return value


def _floats(file: InputFile, header: GgufHeader, info: TensorInfo) -> Floats:
    if info.ggml_type != F32.ggml_type:
        raise _refused(file.path, f"{shown(info.name)} has the ggml type {info.ggml_type}, expected 0 (f32)")
    values = np.empty(info.nbytes // 4, "<f4")
    file.read_into(values, header.data_offset + info.offset, shown(info.name))
    return values


def _of_legacy(path: Path, data: bytes) -> ActivationSums:
    """The older format: numbers of four bytes, a name, values; then chunks and the text's name, if at all."""
    reader = _Reader(path, data)
    entries = reader.number("the number of entries", 1, min(_MOST_ENTRIES, len(data) // 16))
    sums, counts = {}, {}
    for entry in range(1, entries + 1):
        where = f"entry {entry} of {entries}"
        name = reader.text(f"the length of the name of {where}", 1, _LONGEST_NAME)
        calls = reader.number(f"the chunks of {where}", 0, (1 << 31) - 1)
        values = reader.number(f"the number of values of {where}", 1, reader.left // 4)
        if name in sums:
            raise _refused(path, f"{shown(name)} appears twice")
        sums[name] = np.frombuffer(reader.take(4 * values), "<f4")
        counts[name] = np.array([max(1, calls)], np.int64)
    chunks, datasets = 0, []
    if reader.left:
        chunks = reader.number("the number of chunks", 0, (1 << 31) - 1)
        if reader.left:
            datasets = [reader.text("the length of the text's name", 0, reader.left)]
    return ActivationSums(sums, counts, tuple(name for name in datasets if name), chunks, 0)


class _Reader:
    """Reads little-endian values of a file and never past its end."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self._position = path, data, 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return len(self._data) - self._position

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count > self.left:
            raise _refused(self._path, f"ends at byte {len(self._data)}, {count - self.left} more expected")
        self._position += count
        return self._data[self._position - count : self._position]

    def number(self, what: str, least: int, most: int) -> int:
        """An int32 within limits."""
        (value,) = struct.unpack("<i", self.take(4))
        if not least <= value <= most:
            raise _refused(
                self._path,
                f"{what} (at byte {self._position - 4}) is {value}, expected {least} to {most}: it is "
                "neither a GGUF nor an imatrix in the older format, or it is damaged",
            )
        return int(value)

    def text(self, what: str, least: int, most: int) -> str:
        """A string and, before it, its length in bytes."""
        return self.take(self.number(what, least, most)).decode("utf-8", "replace")


def _check(path: Path, name: str, sums: Floats, counts: Counts) -> None:
    if not np.isfinite(sums).all():
        raise _refused(path, f"{shown(name)} contains NaN or infinite values")
    if (sums < 0).any():
        raise _refused(path, f"{shown(name)} contains negative values, expected sums of squares")
    if not len(sums) or not len(counts) or len(sums) % len(counts):
        raise _refused(path, f"{shown(name)} has {len(sums)} values and {len(counts)} counts")
    if not sums.any() and counts.any():
        raise _refused(path, f"{shown(name)} contains only zeros, so none of its weights would matter")


def _refused(path: Path, what: str) -> InputError:
    return InputError(f"the imatrix {path}: {what}", hint=_AGAIN)
