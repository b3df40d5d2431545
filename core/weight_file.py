"""Tensors as they lie in a weight file, whatever its container."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np

from .errors import CheckpointError
from .input_files import InputFile, quoted
from .small_floats import FLOAT8, widened
from .tensor import Array, DType, Tensor

# Names and sizes are those of the safetensors format.
ITEM_SIZES: Mapping[str, int] = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8},
    **{"F16": 2, "BF16": 2, "F32": 4, "F64": 8, "C64": 8, "C128": 16},
    **{"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
}
WEIGHTS = frozenset(dtype.value for dtype in DType)
NEVER_WEIGHTS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})

MAX_AXES = 8
MAX_ELEMENTS = 1 << 48


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies: ``offset`` bytes into the file, ``strides`` in elements (None: C order)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None


@dataclass(frozen=True)
class WeightFile:
    """What ``file`` holds: weights to read, names of what is never a weight (with its type), and aliases.

    ``aliases`` names tensors that are the same bytes as an earlier one (tied weights in a PyTorch file).
    ``scalars`` are the numbers among the dropped, as tensors of the shape (1,).
    """

    tensors: Mapping[str, Tensor]
    dropped: Mapping[str, str]
    aliases: Mapping[str, str]
    file: InputFile
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


def check_shape(shape: object, where: str) -> tuple[int, ...]:
    """``shape`` as a tuple if it is a list of a few axes of sensible length, else CheckpointError."""
    if not isinstance(shape, list | tuple) or any(type(axis) is not int or axis < 0 for axis in shape):
        raise CheckpointError(f"{where} has the shape {quoted(shape)}, expected integers of 0 or more")
    if len(shape) > MAX_AXES:
        raise CheckpointError(f"{where} has {len(shape)} axes, expected at most {MAX_AXES}")
    if math.prod(axis or 1 for axis in shape) > MAX_ELEMENTS:
        raise CheckpointError(f"{where} has the shape {quoted(shape)}, too large for any file")
    return tuple(shape)


def check_name(name: object, path: object) -> str:
    """``name`` if it is a printable string, else CheckpointError; names reach terminals and other files."""
    if not isinstance(name, str) or not name or not name.isprintable() or len(name) > 1024:
        raise CheckpointError(f"{path} has a tensor named {quoted(name)}, expected printable text")
    return name


def collect(file: InputFile, stored: Iterable[TensorPlace]) -> WeightFile:
    """Sort what a file holds into weights, by place in the file, and things that are never weights.

    Scalars, masks and integer buffers are dropped. Weights of 8 bits are widened to F32 when they are read.
    Raises CheckpointError for types kconv does not read.
    """
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    aliases: dict[str, str] = {}
    scalars: dict[str, Tensor] = {}
    first: dict[tuple[object, ...], str] = {}
    for item in sorted(stored, key=lambda item: item.offset):
        if item.dtype in NEVER_WEIGHTS or not item.shape:
            dropped[item.name] = item.dtype if item.shape else f"{item.dtype} scalar"
            if item.dtype in WEIGHTS or item.dtype in FLOAT8:
                scalars[item.name] = _lazy(file, replace(item, shape=(1,), strides=None))
            continue
        if item.dtype not in WEIGHTS and item.dtype not in FLOAT8:
            raise _unsupported(file, item)
        tensors[item.name] = _lazy(file, item)
        if math.prod(item.shape):
            same = first.setdefault((item.offset, item.dtype, item.shape, item.strides), item.name)
            if same != item.name:
                aliases[item.name] = same
    return WeightFile(tensors, dropped, aliases, file, scalars)


def _unsupported(file: InputFile, item: TensorPlace) -> CheckpointError:
    return CheckpointError(
        f"{file.path}: tensor {quoted(item.name)} is {item.dtype}; kconv reads F32, F16, BF16 and F8",
        hint="convert it to F32 first",
    )


def _lazy(file: InputFile, item: TensorPlace) -> Tensor:
    origin = f"{file.path.name}: {item.name}"
    if item.dtype in FLOAT8:
        read = partial(_read_float8, file, item, origin)
        return Tensor(item.name, item.shape, DType.F32, read, origin=origin, held_as=item.dtype)
    dtype = DType(item.dtype)
    read = partial(_read_rows, file, item, dtype.storage, origin)
    return Tensor(item.name, item.shape, dtype, read, origin=origin)


def _read_float8(file: InputFile, item: TensorPlace, origin: str, start: int, stop: int) -> Array:
    return widened(_read_rows(file, item, np.dtype(np.uint8), origin, start, stop), item.dtype)


def _read_rows(
    file: InputFile, item: TensorPlace, storage: np.dtype[Any], origin: str, start: int, stop: int
) -> Array:
    if not 0 <= start <= stop <= item.shape[0]:
        raise ValueError(f"rows {start} to {stop} of {origin}, which has {item.shape[0]}")
    rows = np.empty((stop - start, *item.shape[1:]), storage)
    if rows.size == 0:
        return rows
    if item.strides is None:
        file.read_into(rows, item.offset + start * rows[0].nbytes, origin)
    else:
        _gather(file, rows, item.offset + start * item.strides[0] * storage.itemsize, item.strides, origin)
    return rows


def _gather(file: InputFile, out: Array, offset: int, strides: tuple[int, ...], origin: str) -> None:
    """Fill ``out`` from elements that lie ``strides`` apart: a slice or a transpose that was saved as a view.

    Axes are walked in the order of the file, so each read is one run of neighbouring elements.
    """
    steps = [step for step, length in zip(strides, out.shape, strict=True) if length > 1]
    order = sorted(range(len(steps)), key=lambda axis: -steps[axis])
    walked = out.squeeze().transpose(order)  # a view: what is put in here lands in ``out``
    steps = [steps[axis] for axis in order]
    inner = walked.ndim
    while inner and steps[inner - 1] == math.prod(walked.shape[inner:]):
        inner -= 1
    for index in product(*(range(length) for length in walked.shape[:inner])):
        run = np.empty(walked.shape[inner:], out.dtype)
        place = sum(i * step for i, step in zip(index, steps, strict=False))
        file.read_into(run, offset + place * out.itemsize, origin)
        walked[index] = run
