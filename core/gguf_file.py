"""The GGUF container: writing its header, and reading it with every length checked.

Layout (ggml/docs/gguf.md): magic, version, counts, key-value pairs, tensor table, then the data, each
tensor at a multiple of ``general.alignment`` (32 by default) from the start of the data.

gguf-py is not used: its reader maps the file, trusts its lengths, and takes seconds for a vocabulary of
128,000 tokens; its writer cannot pass on pairs as the bytes they were.
"""

from __future__ import annotations

import errno
import itertools
import math
import reprlib
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from .byte_source import ByteSource, Identity, LocalFile, NotAFile, Opener
from .errors import EnvironmentProblem, GgufError
from .gguf_pairs import ARRAY, SCALARS, STRING, encode_pairs, encode_text
from .model import MetadataValue
from .other_kinds import refuse_other_kind

T = TypeVar("T")

ALIGNMENT = 32
_MAGIC = b"GGUF"
_VERSION = 3
_MAX_HEADER = 1 << 28  # bytes; the largest vocabularies take a tenth of it
_MAX_ITEMS = 1 << 24
_MAX_DIMENSIONS = 4
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
_QUOTING = reprlib.Repr()  # names a damaged header makes up can be megabytes long
_QUOTING.maxstring = 120

# (weights per block, bytes per block) by ggml type, ggml/src/ggml.c type_traits; the reader needs them to
# check that every tensor lies within the file. kconv.quant.formats gives them their names.
BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
    42: (64, 18),
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One line of the tensor table. ``shape`` is in PyTorch order, the reverse of the file's.

    ``offset`` counts from the start of the data. ``part`` is the file of a split model, from 0.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    nbytes: int
    offset: int = 0
    part: int = 0


@dataclass(frozen=True)
class GgufHeader:
    """Everything of a GGUF file but its data. ``size`` is the file's, in bytes.

    ``identity`` says which file it was read from (core/byte_source.py).
    """

    metadata: Mapping[str, Any]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    size: int
    version: int = 3
    identity: Identity | None = field(default=None, compare=False)

    @property
    def arch(self) -> str:
        """``general.architecture``, or an empty string."""
        return str(self.metadata.get("general.architecture", ""))


def shown(value: object) -> str:
    """A name or value of a header for a message, cut where it is long."""
    return _QUOTING.repr(value)


def aligned(size: int, alignment: int = ALIGNMENT) -> int:
    """``size`` rounded up to the alignment."""
    return -(-size // alignment) * alignment


def tensor_bytes(shape: Sequence[int], ggml_type: int) -> int:
    """Bytes of a tensor; ValueError where its rows are no whole number of blocks."""
    block, block_bytes = BLOCKS[ggml_type]
    if shape and shape[-1] % block:
        raise ValueError(f"rows of {shape[-1]} weights are not a multiple of {block}")
    return math.prod(shape) // block * block_bytes


def write_header(
    path: Path, arch: str, metadata: Mapping[str, MetadataValue], tensors: Sequence[TensorInfo]
) -> int:
    """Write everything before the data to ``path`` (overwriting it) and return where the data begins.

    The offset of each tensor is the sum of the aligned sizes before it, in the order given.
    """
    offsets = itertools.accumulate((aligned(info.nbytes) for info in tensors), initial=0)
    infos = [replace(info, offset=offset) for info, offset in zip(tensors, offsets, strict=False)]
    data = header_bytes(encode_pairs({"general.architecture": arch, **metadata}), infos)
    path.write_bytes(data)
    return len(data)


def header_bytes(pairs: Sequence[bytes], tensors: Sequence[TensorInfo], alignment: int = ALIGNMENT) -> bytes:
    """Everything before the data, padded: ``pairs`` as they are, and the tensors with their offsets."""
    table = [_table_line(info) for info in tensors]
    head = _MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(pairs)) + b"".join([*pairs, *table])
    return head.ljust(aligned(len(head), alignment), b"\0")


def _table_line(info: TensorInfo) -> bytes:
    axes = len(info.shape)
    sizes = struct.pack(f"<I{axes}Q", axes, *reversed(info.shape))
    return encode_text(info.name, "surrogateescape") + sizes + struct.pack("<IQ", info.ggml_type, info.offset)


class _Cursor:
    """Reads little-endian values from the start of a file and never past its end."""

    def __init__(self, source: ByteSource, path: Path) -> None:
        self.size, self.identity = source.size, source.identity
        self._source, self.path, self.position, self._data = source, path, 0, b""
        self._data = self._following(min(self.size, 1 << 22))

    def fail(self, what: str) -> GgufError:
        return GgufError(
            f"{self.path}: {what} (at byte {self.position})",
            hint="the file is damaged or not a GGUF; convert it again",
        )

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > self.size or end > _MAX_HEADER:
            raise self.fail(f"header ends early: {count} more bytes expected")
        while end > len(self._data):
            more = self._following(max(len(self._data), end - len(self._data)))
            if not more:
                raise self.fail("header ends early")
            self._data += more
        piece = self._data[self.position : end]
        self.position = end
        return piece

    def _following(self, count: int) -> bytes:
        """At most so many of the bytes behind those read already; none at the end of the file."""
        room = bytearray(min(count, max(0, self.size - len(self._data))))
        return bytes(room[: self._source.read_into(memoryview(room), len(self._data))]) if room else b""

    def since(self, begin: int) -> bytes:
        """What has been taken since the position was ``begin``."""
        return self._data[begin : self.position]

    def unpack(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.take(self.unpack("Q")).decode("utf-8", "surrogateescape")

    def _strings(self, count: int) -> Iterator[str]:
        """So many strings, most of a header: those whose bytes have been read need no call of their own."""
        length, at, data, known = struct.Struct("<Q").unpack_from, self.position, self._data, len(self._data)
        for _ in range(count):
            begin = at + 8
            end = begin + length(data, at)[0] if begin <= known else known + 1
            if end > known or end > _MAX_HEADER:
                self.position = at
                yield self.string()
                at, data, known = self.position, self._data, len(self._data)
                continue
            yield data[begin:end].decode("utf-8", "surrogateescape")
            at = end
        self.position = at

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.unpack(SCALARS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY or depth > 2:
            raise self.fail(f"unknown value type {kind}")
        item, count = self.unpack("I"), self.unpack("Q")
        if count > min(self.size, _MAX_ITEMS):
            raise self.fail(f"array of {count} items in a file of {self.size} bytes")
        if item in SCALARS:
            code = SCALARS[item]
            return struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize("<" + code)))
        if item == STRING:
            return tuple(self._strings(count))
        return tuple(self.value(item, depth + 1) for _ in range(count))


def read_header(path: Path, opener: Opener = LocalFile) -> GgufHeader:
    """Read and check metadata and tensor table; the data itself is not read.

    Raises GgufError where the file is no GGUF, is truncated, or has tensors that overlap or lie outside,
    EnvironmentProblem where permission is missing.
    """
    return _read(path, _parse, opener)


def read_pairs(path: Path) -> dict[str, bytes]:
    """Every key of a file, in order, with the bytes of its pair: key, type, value. Raises as read_header."""
    return _read(path, lambda cursor: {key: pair for key, _, pair in _pairs(cursor, _counts(cursor)[2])})


def _read(path: Path, parse: Callable[[_Cursor], T], opener: Opener = LocalFile) -> T:
    try:
        return parse(_Cursor(opener(path), path))
    except NotAFile as error:
        raise GgufError(f"{path} is {error.kind}, expected a GGUF file") from error
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> GgufError | EnvironmentProblem:
    """What to raise where the system does not read a GGUF file: a path that leads nowhere is the user's."""
    if isinstance(error, PermissionError):
        return EnvironmentProblem(f"no permission to read {path}", hint="change its permissions or its owner")
    what = f"cannot read {path}: {error.strerror or error}"
    if error.errno in _LEADS_NOWHERE:
        return GgufError(what, hint="give the path of a GGUF file")
    return EnvironmentProblem(what, hint="check the disk")


def _counts(cursor: _Cursor) -> tuple[int, int, int]:
    """The version, and how many tensors and pairs there are."""
    if cursor.size < 24 or cursor.take(4) != _MAGIC:
        refuse_other_kind(cursor.path)
        raise cursor.fail("not a GGUF file (it does not begin with 'GGUF')")
    version = cursor.unpack("I")
    if version not in (2, 3):
        raise cursor.fail(f"GGUF version {version}, expected 2 or 3")
    tensors, pairs = cursor.unpack("Q"), cursor.unpack("Q")
    if max(tensors, pairs) > cursor.size // 8:
        raise cursor.fail(f"{tensors} tensors and {pairs} keys in {cursor.size} bytes")
    return version, tensors, pairs


def _pairs(cursor: _Cursor, count: int) -> Iterator[tuple[str, Any, bytes]]:
    """Key, value and bytes of each pair."""
    seen = set()
    for _ in range(count):
        begin, key = cursor.position, cursor.string()
        if key in seen:
            raise cursor.fail(f"key {shown(key)} appears twice")
        seen.add(key)
        yield key, cursor.value(cursor.unpack("I")), cursor.since(begin)


def _parse(cursor: _Cursor) -> GgufHeader:
    version, tensor_count, pair_count = _counts(cursor)
    metadata = {key: value for key, value, _ in _pairs(cursor, pair_count)}
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {shown(alignment)}, expected a power of two")
    tensors = tuple(_tensor_info(cursor) for _ in range(tensor_count))
    data_offset = aligned(cursor.position, alignment)
    _check_layout(cursor, tensors, data_offset, alignment)
    return GgufHeader(metadata, tensors, data_offset, cursor.size, version, cursor.identity)


def _tensor_info(cursor: _Cursor) -> TensorInfo:
    name = cursor.string()
    dimensions = cursor.unpack("I")
    if dimensions > _MAX_DIMENSIONS:
        raise cursor.fail(
            f"tensor {shown(name)} has {dimensions} dimensions, expected at most {_MAX_DIMENSIONS}"
        )
    shape = tuple(reversed([cursor.unpack("Q") for _ in range(dimensions)]))
    ggml_type, offset = cursor.unpack("I"), cursor.unpack("Q")
    if ggml_type not in BLOCKS:
        raise cursor.fail(f"tensor {shown(name)} has unknown ggml type {ggml_type}")
    try:
        nbytes = tensor_bytes(shape, ggml_type)
    except ValueError as error:
        raise cursor.fail(f"tensor {shown(name)}: {error}") from error
    return TensorInfo(name, shape, ggml_type, nbytes, offset)


def _check_layout(cursor: _Cursor, tensors: Sequence[TensorInfo], data_offset: int, alignment: int) -> None:
    if len({info.name for info in tensors}) != len(tensors):
        raise cursor.fail("a tensor name appears twice")
    end = 0
    for info in sorted(tensors, key=lambda info: info.offset):
        if info.offset % alignment:
            raise cursor.fail(
                f"tensor {shown(info.name)} begins at {info.offset}, which is not a multiple of {alignment}"
            )
        if info.offset < end:
            raise cursor.fail(f"tensor {shown(info.name)} overlaps the one before it")
        end = info.offset + info.nbytes
    if tensors and data_offset + end > cursor.size:
        raise cursor.fail(f"truncated: tensors end at {data_offset + end}, the file at {cursor.size}")
