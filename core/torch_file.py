"""PyTorch weight files (``.bin``), read without PyTorch.

``torch.load(weights_only=True, mmap=True)`` would do for friendly files, but it kills the process with SIGBUS
if a mapped file shrinks, cannot map files saved before PyTorch 1.6, adds 140 MB of private memory for the
import, and its unpickler has let code through (torch_pickle.py). Both containers below keep each storage as
one plain run of bytes, so rows are read in place. Layouts: torch/serialization.py, _save and _legacy_save.
"""

from __future__ import annotations

import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from .byte_source import LocalFile, Opener
from .errors import CheckpointError
from .input_files import DOWNLOAD_HINT, InputFile, quoted, refuse_lfs_pointer
from .torch_pickle import MAX_INSTRUCTIONS, MOST_INSTRUCTIONS, read_pickle
from .torch_values import PickledTensor, Storage
from .weight_file import ITEM_SIZES, TensorPlace, WeightFile, check_name, check_shape, collect

TABLE_LIMIT = 16 << 20
"""Largest pickle and largest zip directory read, in bytes; 100 to 200 bytes a tensor is usual."""

# What torch.save needs for a tensor is about 40 instructions, 60 with a storage of its own.
_A_RECORD = 200
_BYTES_BEFORE_1_6 = 64  # bytes of the file for each instruction; there is no directory to count records in

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
WRAPPERS = ("state_dict", "model_state_dict", "model", "module")

Places = Callable[[Storage], int]
"""Where in the file a storage begins; raises CheckpointError unless all of it is there."""


def open_torch(path: Path, opener: Opener = LocalFile) -> WeightFile:
    """Read and check the pickle of a PyTorch weight file; no data is read and nothing is executed.

    The file holds a state dict, or a dict with one under ``state_dict`` or ``model``. Raises CheckpointError.
    """
    file = InputFile(path, opener)
    head = file.read(0, min(file.size, 100))
    refuse_lfs_pointer(path, head)
    if head.startswith(b"PK"):
        value, place = _open_zip(file)
    elif head[:1] in (b"\x80", b"c", b"("):  # a pickle of protocol 2 and later, or of 0
        value, place = _open_legacy(file)
    else:
        raise CheckpointError(
            f"{path} is not a PyTorch weight file: it is neither a zip archive nor a pickle",
            hint=DOWNLOAD_HINT,
        )
    stored: list[TensorPlace] = []
    others: dict[str, str] = {}
    for key, item in _state_dict(value, path).items():
        name = check_name(key, path)
        if isinstance(item, PickledTensor):
            stored.append(_stored(file, name, item, place))
        elif isinstance(item, dict) and any(isinstance(inner, PickledTensor) for inner in item.values()):
            raise CheckpointError(
                f"{path} contains nested dicts of tensors, such as {quoted(name)}; expected one state dict",
                hint="save the model's state_dict() alone",
            )
        else:
            others[name] = "not a tensor"
    weights = collect(file, stored)
    return WeightFile(weights.tensors, {**weights.dropped, **others}, weights.aliases, file, weights.scalars)


def _state_dict(value: object, path: Path) -> Mapping[Any, Any]:
    if isinstance(value, dict) and not any(isinstance(item, PickledTensor) for item in value.values()):
        inner = [value[name] for name in WRAPPERS if isinstance(value.get(name), dict)]
        value = inner[0] if len(inner) == 1 else value
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{path} contains a {type(value).__name__}, expected a state dict (tensors by name)"
        )
    return value


def _stored(file: InputFile, name: str, tensor: PickledTensor, place: Places) -> TensorPlace:
    """Check one tensor's view against its storage."""
    where = f"{file.path}: tensor {quoted(name)}"
    shape, size = check_shape(tensor.shape, where), ITEM_SIZES[tensor.dtype]
    strides = tensor.strides
    if not isinstance(strides, tuple) or any(type(step) is not int or step < 0 for step in strides):
        raise CheckpointError(f"{where} has the strides {quoted(strides)}, expected integers of 0 or more")
    if len(strides) != len(shape) or type(tensor.offset) is not int or tensor.offset < 0:
        raise CheckpointError(
            f"{where} has strides {quoted(strides)}, offset {quoted(tensor.offset)}, which is not a "
            "valid view"
        )
    start = place(tensor.storage)
    elements = math.prod(shape)
    count = tensor.storage.count * ITEM_SIZES[tensor.storage.dtype] // size
    reach = 1 + sum((length - 1) * step for length, step in zip(shape, strides, strict=True))
    if elements and (tensor.offset + reach > count or elements > count):
        raise CheckpointError(
            f"{where} of shape {list(shape)} reaches beyond its storage of {count} elements"
        )
    offset = start + tensor.offset * size if elements else start
    axes = [(length, step) for length, step in zip(shape, strides, strict=True) if length > 1]
    if elements == 0 or all(
        step == math.prod(length for length, _ in axes[axis + 1 :]) for axis, (_, step) in enumerate(axes)
    ):
        return TensorPlace(name, tensor.dtype, shape, offset)
    if min(step for _, step in axes) != 1:
        raise CheckpointError(
            f"{where} has the strides {quoted(strides)}, so no two elements are adjacent",
            hint="save it again after .contiguous()",
        )
    return TensorPlace(name, tensor.dtype, shape, offset, strides)


def _open_zip(file: InputFile) -> tuple[Any, Places]:
    """A zip archive: ``<name>/data.pkl`` and, uncompressed, each storage as ``<name>/data/<key>``."""
    records = _directory(file)
    pickles = [name for name in records if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise CheckpointError(
            f"{file.path} is a zip archive without the data.pkl of a PyTorch weight file", hint=DOWNLOAD_HINT
        )
    root = pickles[0].partition("/")[0]
    if f"{root}/constants.pkl" in records:
        raise CheckpointError(
            f"{file.path} is a TorchScript program, not a weight file",
            hint="save the model's state_dict() instead",
        )

    def content(name: str) -> bytes:
        offset, size = _record(file, records[name])
        if size > TABLE_LIMIT:
            raise CheckpointError(f"{file.path}: {name} has {size} bytes, expected at most {TABLE_LIMIT}")
        return file.read(offset, size)

    if f"{root}/byteorder" in records and content(f"{root}/byteorder").strip() != b"little":
        raise CheckpointError(
            f"{file.path} was saved on a big-endian machine, expected little-endian numbers"
        )

    def place(storage: Storage) -> int:
        name = f"{root}/data/{storage.key}"
        if name not in records:
            raise CheckpointError(
                f"{file.path}: the storage {quoted(storage.key)} is missing from the archive"
            )
        offset, size = _record(file, records[name])
        need = storage.count * ITEM_SIZES[storage.dtype]
        if size < need:
            raise CheckpointError(
                f"{file.path}: the storage {quoted(storage.key)} has {size} bytes, expected {need}"
            )
        return offset

    allowed = _instructions(_A_RECORD * len(records))
    value = read_pickle(io.BytesIO(content(pickles[0])), str(file.path), instructions=allowed)
    _refuse_overlaps(file, records.values())
    return value, place


def _instructions(content: int) -> int:
    """How many the pickle may have: in proportion to what the file holds, since they cost time and memory."""
    return min(MAX_INSTRUCTIONS + content, MOST_INSTRUCTIONS)


def _refuse_overlaps(file: InputFile, entries: Iterable[zipfile.ZipInfo]) -> None:
    """Raise CheckpointError where bytes belong to two records: a small file could be made to look huge."""
    end, before = 0, ""
    for entry in sorted(entries, key=lambda entry: entry.header_offset):
        if entry.header_offset < end:
            raise CheckpointError(
                f"{file.path}: the records {quoted(before)} and {quoted(entry.filename)} share bytes",
                hint=DOWNLOAD_HINT,
            )
        end = entry.header_offset + 30 + len(entry.orig_filename) + entry.compress_size
        before = entry.filename


def _directory(file: InputFile) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(Seekable(file)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError, IndexError) as error:
        raise CheckpointError(
            f"{file.path} is truncated or damaged: its zip directory cannot be read "
            f"({quoted(str(error))[1:-1]})",
            hint=DOWNLOAD_HINT,
        ) from error
    records = {entry.filename: entry for entry in entries}
    if len(records) != len(entries):
        raise CheckpointError(f"{file.path} contains two records with the same name")
    return records


def _record(file: InputFile, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Offset and size of a record's bytes. The local header in front of them has a length of its own."""
    where = f"{file.path}: the record {quoted(entry.filename)}"
    if (
        entry.compress_type != zipfile.ZIP_STORED
        or entry.flag_bits & 1
        or entry.file_size != entry.compress_size
    ):
        raise CheckpointError(
            f"{where} is compressed or encrypted, which PyTorch never does",
            hint="save it again with torch.save",
        )
    if not 0 <= entry.header_offset <= file.size - 30:
        raise CheckpointError(f"{where} begins outside the file", hint=DOWNLOAD_HINT)
    local = file.read(entry.header_offset, 30)
    name_length, extra_length = struct.unpack_from("<HH", local, 26)
    offset = entry.header_offset + 30 + name_length + extra_length
    encoding = "utf-8" if entry.flag_bits & 0x800 else "cp437"
    if local[:4] != b"PK\x03\x04" or offset + entry.file_size > file.size:
        raise CheckpointError(f"{where} is not where the zip directory says it is", hint=DOWNLOAD_HINT)
    if file.read(entry.header_offset + 30, name_length) != entry.orig_filename.encode(encoding):
        raise CheckpointError(f"{where} has a different name in its own header", hint=DOWNLOAD_HINT)
    return offset, entry.file_size


class Readable(Protocol):
    """An InputFile, or what has as much of one as a directory takes."""

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``."""
        ...


class Seekable(io.RawIOBase):
    """The file as ``zipfile`` wants it, reading no more at once than a sane directory has."""

    def __init__(self, file: Readable) -> None:
        self._file, self._at = file, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.size}[whence]
        if at < 0:
            raise OSError("before the beginning of the file")
        self._at = at
        return at

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._file.size - self._at)
        count = left if size is None or size < 0 else min(size, left)
        if count > TABLE_LIMIT:
            raise OSError(f"it would have {count} bytes")
        data = self._file.read(self._at, count)
        self._at += count
        return data


def _open_legacy(file: InputFile) -> tuple[Any, Places]:
    """PyTorch before 1.6: five pickles (magic, protocol, system, value, keys), then all storages.

    They come in the order of the keys, each as its number of elements in eight bytes, then its elements.
    """
    path = str(file.path)
    stream = io.BytesIO(file.read(0, min(file.size, TABLE_LIMIT)))
    if read_pickle(stream, path) != LEGACY_MAGIC:
        raise CheckpointError(
            f"{path} is a pickle, but not one written by PyTorch",
            hint="save it again with torch.save or as safetensors",
        )
    protocol, system = read_pickle(stream, path), read_pickle(stream, path)
    if protocol != LEGACY_PROTOCOL or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"{path} was saved by an unknown PyTorch version or on a big-endian machine")
    seen: dict[str, Storage] = {}
    allowed = _instructions(file.size // _BYTES_BEFORE_1_6)
    value = read_pickle(stream, path, seen, instructions=allowed)
    keys = read_pickle(stream, path, instructions=allowed)
    places: dict[str, int] = {}
    offset = stream.tell()
    if not isinstance(keys, list) or len(keys) != len(seen):
        raise CheckpointError(f"{path}: the list of storages does not name all of them", hint=DOWNLOAD_HINT)
    for key in keys:
        storage = seen.get(key) if isinstance(key, str) else None
        if storage is None or key in places:
            raise CheckpointError(
                f"{path}: the list of storages names {quoted(key)}, which is not a storage or appears twice"
            )
        need = storage.count * ITEM_SIZES[storage.dtype]
        if need > file.size - offset - 8:
            raise CheckpointError(
                f"{path} is truncated: storage {quoted(key)} of {need} bytes does not fit in {file.size}",
                hint=DOWNLOAD_HINT,
            )
        if int.from_bytes(file.read(offset, 8), "little") != storage.count:
            raise CheckpointError(
                f"{path}: the storage {quoted(key)} does not have the length its pickle gives"
            )
        places[key] = offset + 8
        offset += 8 + need
    return value, lambda storage: places[storage.key]
