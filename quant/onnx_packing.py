"""ggml's q4_0 and q8_0 blocks as onnxruntime's MatMulNBits and GatherBlockQuantized take them.

Both are blocks of 32 whole numbers and a scale, so the weights stay the very same; only bits move. ggml
(ggml-common.h) has the scale as a half in front of each block and writes q4_0's numbers, 0 to 15 around 8,
with element j in the low and j + 16 in the high half of byte j; q8_0's are signed. onnxruntime
(docs/ContribOperators.md) has the scales apart, in the type of the activations, neighbours in one byte with
the first in the low half, and numbers of 8 bits around 128. Tried with onnxruntime 1.31.1: without zero
points both operators take 8 and 128 for them, and their weights are ggml's to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.errors import UsageError
from ..core.tensor import Array
from .formats import FORMATS, Q8_0, Format

BLOCK = 32
"""Weights that share a scale."""

_BITS = {FORMATS["q4_0"]: 4, Q8_0: 8}
PACKED: tuple[Format, ...] = tuple(_BITS)
"""The formats there is a packing for."""


@dataclass(frozen=True)
class Packed:
    """Rows of a quantized matrix: ``weights`` (rows, blocks, bytes) and ``scales`` (rows, blocks)."""

    weights: npt.NDArray[np.uint8]
    scales: npt.NDArray[np.float32]


@dataclass(frozen=True)
class PackedShapes:
    """The shapes of a packed matrix.

    MatMulNBits takes ``weights``, GatherBlockQuantized the same bytes as ``table`` (rows, bytes).
    """

    weights: tuple[int, int, int]
    table: tuple[int, int]
    scales: tuple[int, int]


def bits(format: Format) -> int:
    """Bits of one weight. Raises UsageError for a format that has no packing."""
    if format not in _BITS:
        raise UsageError(
            f"{format.display} is not available for ONNX, only {' and '.join(f.display for f in PACKED)}"
        )
    return _BITS[format]


def zero(format: Format) -> int:
    """The number that stands for 0. Raises UsageError for a format that has no packing."""
    return 1 << (bits(format) - 1)


def packed_shapes(format: Format, shape: Sequence[int]) -> PackedShapes:
    """The shapes of a matrix of ``shape`` (rows, columns) in ``format``. Raises UsageError if it has none."""
    rows, columns = shape
    format.row_bytes(columns)
    blocks, each = columns // BLOCK, BLOCK * bits(format) // 8
    return PackedShapes((rows, blocks, each), (rows, blocks * each), (rows, blocks))


def matmul_attributes(format: Format, shape: Sequence[int], accuracy_level: int = 0) -> dict[str, int]:
    """Attributes of the MatMulNBits that multiplies by the transpose of a matrix (rows, columns).

    ``accuracy_level``: 0 computes with the activations as they are, 4 makes 8-bit numbers of them first.
    """
    rows, columns = shape
    return {
        "N": rows,
        "K": columns,
        "bits": bits(format),
        "block_size": BLOCK,
        "accuracy_level": accuracy_level,
    }


def gather_attributes(format: Format) -> dict[str, int]:
    """Attributes of the GatherBlockQuantized that looks rows up in a table of ``format``."""
    return {"bits": bits(format), "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}


def pack(format: Format, data: Array, columns: int) -> Packed:
    """Rows of ``columns`` weights, as the bytes a GGUF has for them, in onnxruntime's packing.

    Every row is packed by itself, so a matrix may be packed in slabs. Raises UsageError for bytes that are
    not whole rows.
    """
    width = bits(format)
    raw = np.require(data, requirements=["C", "A"]).reshape(-1).view(np.uint8)
    row_bytes = format.row_bytes(columns)
    if row_bytes == 0 or raw.size % row_bytes:
        raise UsageError(
            f"{raw.size} bytes are not a whole number of rows of {columns} weights in {format.display}"
        )
    blocks = raw.view("<u2").reshape(raw.size // row_bytes, columns // BLOCK, format.block_bytes // 2)
    numbers = _neighbours(blocks[..., 1:]) if width == 4 else blocks[..., 1:] ^ np.uint16(0x8080)
    scales = np.ascontiguousarray(blocks[..., 0]).view("<f2").astype(np.float32)
    return Packed(numbers.view(np.uint8), scales)


def _neighbours(pairs: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """``(rows, blocks, 8)`` pairs of q4_0's bytes ``-> (rows, blocks, 16)``.

    Bytes 2k and 2k + 1 hold elements 2k and 2k + 1 in their low halves, 2k + 16 and 2k + 17 in the high ones.
    """
    low, high = pairs & 0x0F0F, (pairs >> 4) & 0x0F0F
    out = np.empty((*pairs.shape[:2], 16), np.uint8)
    out[..., :8] = low | low >> 4  # what is beyond the low byte falls away
    out[..., 8:] = high | high >> 4
    return out


def unpacked(format: Format, packed: Packed) -> npt.NDArray[np.float32]:
    """The weights (rows, columns) onnxruntime computes with, as its operators are documented."""
    numbers = packed.weights
    if bits(format) == 4:
        numbers = np.stack([numbers & 15, numbers >> 4], -1).reshape(*numbers.shape[:2], BLOCK)
    weights = (numbers.astype(np.float32) - np.float32(zero(format))) * packed.scales[..., None]
    return weights.reshape(len(weights), -1)
