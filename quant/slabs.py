"""Rows of a checkpoint to bytes of a GGUF, in one pass.

A slab, as large as the writer likes, is worked through in tiles: each is looked over for weights that are
not finite, widened to float32 once and encoded in every format asked for while it sits in the processor's
cache. So the checkpoint crosses memory once, whatever is made of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import UsageError
from ..core.tensor import Array, DType
from . import ggml, native
from .formats import BF16, F16, F32, Format
from .native import INFINITY, Kernels

# Weights in a tile. Measured: encoding is slower than the last-level cache at any size, but threads that meet
# at the interpreter's lock between calls lose all they gain below some 100 microseconds a call.
TILE = 1 << 20

# The largest half float. Larger weights may overflow F16 itself and, divided, the F16 scales of blocks.
HALF_MAX = 65504.0

# Where the half-float scales (and minima) of a block lie (ggml-common.h). nvfp4 has scales of bytes that are
# always numbers; those of iq1_m and mxfp4 are put together in has_overflowed.
_SCALES: dict[str, tuple[int, ...]] = {
    "q1_0": (0,),
    "q2_0": (0,),
    "q4_0": (0,),
    "q4_1": (0, 2),
    "q5_0": (0,),
    "q5_1": (0, 2),
    "q8_0": (0,),
    "q2_K": (80, 82),
    "q3_K": (108,),
    "q4_K": (0, 2),
    "q5_K": (0, 2),
    "q6_K": (208,),
    "tq1_0": (52,),
    "tq2_0": (64,),
    "iq1_s": (0,),
    "iq2_xxs": (0,),
    "iq2_xs": (0,),
    "iq2_s": (0,),
    "iq3_xxs": (0,),
    "iq3_s": (0,),
    "iq4_nl": (0,),
    "iq4_xs": (0,),
}

_SAME = {DType.F32: F32, DType.F16: F16, DType.BF16: BF16}


@dataclass(frozen=True)
class Slab:
    """Rows in the formats asked for.

    ``data`` holds one flat array of bytes for each format, in the order asked. They are views of the source
    or of the scratch memory and hold until that is used again. ``largest`` is the largest magnitude among
    the weights: infinite if one is, NaN if one is. ``overflowed`` names formats in which finite weights
    became infinite, ``impossible`` those that libggml cannot encode such weights in; their data are void.
    """

    data: tuple[Array, ...]
    largest: float
    overflowed: tuple[Format, ...] = ()
    impossible: tuple[Format, ...] = ()

    @property
    def finite(self) -> bool:
        """Whether no weight is NaN or infinite."""
        return math.isfinite(self.largest)


class Scratch:
    """The memory one thread works in, kept from slab to slab.

    It holds a tile of float32 and, for each format in use, as much as the largest slab took.
    """

    def __init__(self) -> None:
        self._floats = np.empty(0, np.float32)
        self._outputs: dict[Format, ggml.Bytes] = {}

    def floats(self, count: int) -> ggml.Floats:
        """Room for ``count`` float32."""
        if self._floats.size < count:
            self._floats = np.empty(count, np.float32)
        return self._floats[:count]

    def output(self, format: Format, count: int) -> ggml.Bytes:
        """Room for ``count`` bytes of ``format``."""
        buffer = self._outputs.get(format)
        if buffer is None or buffer.size < count:
            buffer = self._outputs[format] = np.empty(count, np.uint8)
        return buffer[:count]


def convert_slab(
    source: Array,
    dtype: DType,
    formats: Sequence[Format],
    scratch: Scratch,
    importance: ggml.Floats | None = None,
    *,
    kernels: Kernels = "chosen",
) -> Slab:
    """Encode ``source`` (rows, …, columns), in ``dtype.storage``, in each of ``formats``.

    ``importance`` (columns,) weighs the columns of all rows, or (experts * columns,) those of each expert of
    a source (experts, rows, columns). A slab that is F32, F16 or BF16 already is passed through bit by bit,
    without a copy. ``kernels`` that are not the chosen ones serve proofs; see Encoder.
    Raises UsageError for columns that are not whole blocks of a format.
    """
    if source.dtype != dtype.storage:
        raise UsageError(f"weights of {dtype.value} travel as {dtype.storage}, not as {source.dtype}")
    columns = source.shape[-1] if source.ndim else 1
    rows = np.require(source, requirements=["C", "A"]).reshape(-1, columns)
    same = _SAME[dtype]
    outputs = {
        format: scratch.output(format, format.tensor_bytes(rows.shape))
        for format in dict.fromkeys(formats)
        if format != same
    }
    largest, impossible = _encode_tiles(rows, dtype, outputs, scratch, importance, kernels)
    overflowed: tuple[Format, ...] = ()
    # Importance may be zero where the weights are not.
    if HALF_MAX < largest < math.inf or (importance is not None and largest <= HALF_MAX):
        overflowed = tuple(
            format
            for format in outputs
            if format not in impossible and has_overflowed(format, outputs[format])
        )
    outputs[same] = rows.reshape(-1).view(np.uint8)
    return Slab(tuple(outputs[format] for format in formats), largest, overflowed, tuple(impossible))


def _encode_tiles(
    rows: Array,
    dtype: DType,
    outputs: Mapping[Format, ggml.Bytes],
    scratch: Scratch,
    importance: ggml.Floats | None,
    kernels: Kernels,
) -> tuple[float, list[Format]]:
    """Fill ``outputs`` from ``rows`` (rows, columns); the largest magnitude, and which were impossible."""
    columns = rows.shape[1]
    weighed = None if importance is None else importance.reshape(-1, columns)
    experts = 1 if weighed is None else len(weighed)
    largest = 0
    impossible: dict[Format, None] = {}
    for expert, start, stop in _tiles(len(rows), columns, experts):
        floats = tile = rows[start:stop]
        if outputs and dtype is not DType.F32:
            floats = scratch.floats(tile.size).reshape(tile.shape)
        bits = _widen(tile, dtype, None if floats is tile else floats, kernels)
        largest = max(largest, bits)
        weights = None if weighed is None else weighed[expert]
        for format, output in outputs.items():
            if not ggml.can_encode(format, _magnitude(bits), weights):
                impossible[format] = None
                continue
            size, finite = format.row_bytes(columns), bits < INFINITY
            some = output[start * size : stop * size]
            ggml.encode(format, floats, some, weights, finite=finite, kernels=kernels)
    return _magnitude(largest), list(impossible)


def _tiles(rows: int, columns: int, experts: int) -> Iterator[tuple[int, int, int]]:
    """Expert, first and last row of each tile; none crosses from one expert to the next."""
    step = max(1, TILE // max(columns, 1))
    each = rows // experts
    for expert in range(experts):
        for start in range(expert * each, (expert + 1) * each, step):
            yield expert, start, min(start + step, (expert + 1) * each)


def _widen(source: Array, dtype: DType, out: ggml.Floats | None, kernels: Kernels = "chosen") -> int:
    """The float32 bits, sign aside, of the largest magnitude; ``source`` is written to ``out``, if given.

    Magnitudes are ordered as their bits.
    """
    if source.size == 0:
        return 0
    bits = native.widen(source, dtype, out) if kernels == "chosen" else None
    if bits is not None:
        return bits
    bits = _largest_bits(source, dtype)
    if out is not None:
        ggml.to_float32(source, dtype, out, finite=bits < INFINITY)
    return bits


def _largest_bits(source: Array, dtype: DType) -> int:
    """As ``_widen``: the largest signed number is the largest positive weight's bits, the largest unsigned
    one the largest negative weight's. Two quick passes need no room and miss nothing.
    """
    signed, unsigned = (np.int32, np.uint32) if dtype is DType.F32 else (np.int16, np.uint16)
    sign = 1 << (8 * dtype.itemsize - 1)
    positive = int(source.view(signed).max())
    negative = int(source.view(unsigned).max()) - sign
    bits = max(positive, negative, 0)
    if dtype is DType.F16:
        return int(np.uint16(bits).view(np.float16).astype(np.float32).view(np.uint32))
    return bits if dtype is DType.F32 else bits << 16


def _magnitude(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def all_finite(source: Array, dtype: DType) -> bool:
    """Whether no weight of ``source``, contiguous and in ``dtype.storage``, is NaN or infinite."""
    return _widen(source, dtype, None) < INFINITY


_INFINITY = {DType.F32: INFINITY, DType.F16: 0x7C00, DType.BF16: 0x7F80}


def count_nonfinite(source: Array, dtype: DType) -> tuple[int, int]:
    """How many weights are NaN and how many are infinite."""
    signless = (1 << (8 * dtype.itemsize - 1)) - 1
    bits = np.bitwise_and(source.view(np.uint32 if dtype is DType.F32 else np.uint16), signless)
    infinity = _INFINITY[dtype]
    return int(np.count_nonzero(bits > infinity)), int(np.count_nonzero(bits == infinity))


def has_overflowed(format: Format, data: Array) -> bool:
    """Whether ``data``, encoded from finite weights, holds a weight or block scale that is no finite number.

    llama-quantize refuses such tensors (ggml_validate_row_data).
    """
    if format == F16:
        return not all_finite(data.view(np.uint16), DType.F16)
    if format == BF16:
        return not all_finite(data.view(np.uint16), DType.BF16)
    blocks = data.reshape(-1, format.block_bytes)
    if format.name == "mxfp4":
        return bool((blocks[:, 0] == 0xFF).any())
    if format.name == "iq1_m":  # four bits of its scale are at the top of each of the last four half words
        words = np.ascontiguousarray(blocks[:, 48:56]).view(np.uint16) >> 12
        return not all_finite((words << np.array([0, 4, 8, 12], np.uint16)).sum(1, np.uint16), DType.F16)
    for offset in _SCALES.get(format.name, ()):
        scales = np.ascontiguousarray(blocks[:, offset : offset + 2]).view(np.uint16)
        if not all_finite(scales, DType.F16):
            return True
    return False
