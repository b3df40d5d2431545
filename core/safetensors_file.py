"""The safetensors container, read without its library, which cannot give BF16 to numpy.

Format: https://huggingface.co/docs/safetensors/index#format. Eight bytes give the length of a JSON header,
the header says type, shape and place of each tensor, the rest is data. The reference implementation demands
that the tensors cover the data without holes, and so do we: bytes nobody names are a sign of a damaged or
doctored file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .byte_source import LocalFile, Opener
from .errors import CheckpointError
from .input_files import DOWNLOAD_HINT, InputFile, parse_json, quoted, refuse_lfs_pointer
from .weight_file import ITEM_SIZES, TensorPlace, WeightFile, check_name, check_shape, collect

HEADER_LIMIT = 100_000_000
SUB_BYTE = ("F4", "F6_E2M3", "F6_E3M2")


def open_safetensors(path: Path, opener: Opener = LocalFile) -> WeightFile:
    """Read and check the header of a safetensors file; no data is read. Raises CheckpointError."""
    file = InputFile(path, opener)
    header, data_start = _header(file)
    stored = [_entry(file, name, entry, data_start) for name, entry in header.items()]
    _check_cover(file, stored, data_start)
    return collect(file, stored)


def tensors_within(path: Path, ranges: Sequence[tuple[int, int]]) -> list[str]:
    """Names of the tensors of which bytes lie in one of the ``ranges`` of the file, in its order.

    Raises CheckpointError as ``open_safetensors``.
    """
    file = InputFile(path)
    header, data_start = _header(file)
    found = []
    for name, entry in header.items():
        place = _entry(file, name, entry, data_start)
        end = place.offset + math.prod(place.shape) * ITEM_SIZES.get(place.dtype, 1)
        if any(start < end and place.offset < stop for start, stop in ranges):
            found.append((place.offset, name))
    return [name for _, name in sorted(found)]


def _header(file: InputFile) -> tuple[dict[str, Any], int]:
    refuse_lfs_pointer(file.path, file.read(0, min(file.size, 100)))
    if file.size < 8:
        raise CheckpointError(
            f"{file.path} has {file.size} bytes, too few for safetensors", hint=DOWNLOAD_HINT
        )
    length = int.from_bytes(file.read(0, 8), "little")
    if length > HEADER_LIMIT:
        raise CheckpointError(
            f"{file.path} is not a safetensors file or is damaged: its header would have {length} "
            f"bytes, more than the format's limit of {HEADER_LIMIT}",
            hint=DOWNLOAD_HINT,
        )
    if 8 + length > file.size:
        raise CheckpointError(
            f"{file.path} is truncated: its header has {length} bytes, but the file ends after {file.size}",
            hint=DOWNLOAD_HINT,
        )
    data = file.read(8, length)
    where = f"{file.path}: the header"
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where} is not UTF-8: {error.reason} at byte {error.start}") from error
    header = parse_json(text, where, allow_repeats=False) if text.startswith("{") else None
    if not isinstance(header, dict):
        raise CheckpointError(f"{where} is not a JSON object, as safetensors requires", hint=DOWNLOAD_HINT)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or any(not isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{where} has a __metadata__ that is not an object of strings")
    return header, 8 + length


def _entry(file: InputFile, name: str, entry: object, data_start: int) -> TensorPlace:
    where = f"{file.path}: tensor {quoted(check_name(name, file.path))}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(
            f"{where} is described by {quoted(entry)}, expected dtype, shape and data_offsets"
        )
    dtype, offsets = entry["dtype"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        if dtype in SUB_BYTE:
            raise CheckpointError(
                f"{where} is {dtype}; kconv reads F32, F16 and BF16", hint="dequantize it to BF16 first"
            )
        raise CheckpointError(f"{where} has unknown type {quoted(dtype)}")
    shape = check_shape(entry["shape"], where)
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(place) is int for place in offsets)):
        raise CheckpointError(f"{where} has the offsets {quoted(offsets)}, expected two integers")
    begin, end = offsets
    if not 0 <= begin <= end:
        raise CheckpointError(f"{where} has the offsets {quoted(offsets)}, expected 0 <= begin <= end")
    if end > file.size - data_start:
        raise CheckpointError(
            f"{where} has the offsets {quoted(offsets)}, but the data ends after {file.size - data_start} "
            "bytes: the file is truncated, or the offsets are wrong",
            hint=DOWNLOAD_HINT,
        )
    need = math.prod(shape) * ITEM_SIZES[dtype]
    if end - begin != need:
        raise CheckpointError(
            f"{where} has {end - begin} bytes, but {dtype} of shape {list(shape)} needs {need}"
        )
    return TensorPlace(name, dtype, shape, data_start + begin)


def _check_cover(file: InputFile, stored: list[TensorPlace], data_start: int) -> None:
    reached, before = data_start, ""
    for item in sorted(stored, key=lambda item: (item.offset, math.prod(item.shape))):
        if item.offset < reached:
            raise CheckpointError(f"{file.path}: tensors {quoted(before)} and {quoted(item.name)} overlap")
        if item.offset > reached:
            raise CheckpointError(
                f"{file.path}: the {item.offset - reached} bytes before tensor {quoted(item.name)} do "
                "not belong to any tensor"
            )
        reached, before = item.offset + math.prod(item.shape) * ITEM_SIZES[item.dtype], item.name
    if reached != file.size:
        raise CheckpointError(
            f"{file.path}: {file.size - reached} bytes after the last tensor do not belong to any tensor"
        )
