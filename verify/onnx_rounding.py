"""The whole numbers other programs store weights as in ONNX: the nearest there are."""

from __future__ import annotations

import numpy as np

from ..quant.ggml import Floats
from ..runtimes.onnx_blocks import Scaled

_UINT8 = 2  # onnx.proto, TensorProto.DataType


def rounded_in_blocks(weights: Floats, size: int, bits: int) -> Floats:
    """``weights`` (rows, columns) as the nearest of so many numbers between the ends of each block."""
    rows, columns = weights.shape
    padded = np.pad(weights, ((0, 0), (0, -columns % size))).reshape(rows, -1, size)
    least, most = np.minimum(padded.min(-1, keepdims=True), 0), np.maximum(padded.max(-1, keepdims=True), 0)
    step = (most - least) / ((1 << bits) - 1)
    with np.errstate(all="ignore"):
        codes = np.where(step > 0, np.rint((padded - least) / step), 0)
    made: Floats = (codes * step + least).reshape(rows, -1)[:, :columns].astype(np.float32)
    return made


def nearest_scaled(weights: Floats, scaled: Scaled, rows: slice, shape: tuple[int, ...]) -> Floats:
    """``weights``, some rows of a tensor of that shape, as the nearest numbers its scales allow."""
    turned = scaled.numbers.shape != shape or scaled.scale.size not in (1, shape[1])
    scale, zero = scaled.scale, scaled.zero
    if turned:
        scale, zero = (each if each.size == 1 else each[rows, None] for each in (scale, zero))
    least = 0 if scaled.numbers.element == _UINT8 else -128
    with np.errstate(all="ignore"):
        codes = np.clip(np.rint(weights / scale) + zero, least, least + 255)
    made: Floats = ((codes - zero) * scale).astype(np.float32)
    return made
