"""Single rows of tensors as float32, and whether they are the same weights, quantization aside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.gguf_file import TensorInfo
from ..core.tensor import Tensor
from ..quant.formats import FORMATS, Format
from ..quant.ggml import Floats, dequantize, encode, widened

_SLAB = 1 << 20


@dataclass(frozen=True)
class Pair:
    """A tensor of the file and the one of the checkpoint, mapped, that it should be."""

    info: TensorInfo
    tensor: Tensor
    format: Format


def floats(tensor: Tensor, start: int, stop: int) -> Floats:
    """Rows ``start..stop`` of the first axis as float32, (rows, columns); a vector is one row."""
    source = tensor.read(start, stop)
    return widened(source, tensor.dtype).reshape(-1, source.shape[-1])


def rows_of(tensor: Tensor, rows: Sequence[int]) -> Floats:
    """These rows, (len(rows), columns); rows of all but the last axis count. A vector has one row, 0."""
    if len(tensor.shape) == 1:
        return floats(tensor, 0, tensor.rows)
    each = tensor.row_elements // tensor.shape[-1]
    return np.stack([floats(tensor, row // each, row // each + 1)[row % each] for row in rows])


def column(tensor: Tensor, columns: Sequence[int]) -> Floats:
    """These columns of a matrix, each as a row."""
    step = max(1, _SLAB // max(1, tensor.row_elements))
    parts = [
        floats(tensor, start, min(start + step, tensor.rows))[:, list(columns)]
        for start in range(0, tensor.rows, step)
    ]
    return np.ascontiguousarray(np.concatenate(parts).T)


def alike(stored: Floats, candidate: Floats, error: float) -> bool:
    """Whether ``found`` is ``candidate`` within twice the relative error a format makes."""
    if stored.shape != candidate.shape:
        return False
    one, other = stored.astype(np.float64), candidate.astype(np.float64)
    norm = np.sqrt((other**2).sum(axis=1))
    difference = np.sqrt(((one - other) ** 2).sum(axis=1))
    limit = min(0.8, 2 * error + 1e-3)
    return bool((norm > 0).any() and (difference <= limit * norm).all())


def as_stored(weights: Floats, *names: str) -> Floats:
    """The weights after being stored in one float format after another."""
    for name in names:
        format = FORMATS[name]
        data = np.empty(format.tensor_bytes(weights.shape), np.uint8)
        encode(format, np.ascontiguousarray(weights), data)
        weights = dequantize(format, data, weights.shape)
    return weights


def search(tensor: Tensor, rows: Floats) -> list[int]:
    """For each of ``rows`` the number of the tensor's row most like it (by the angle between them)."""
    step = max(1, _SLAB // max(1, tensor.row_elements))
    best, place = np.full(len(rows), -2.0), np.zeros(len(rows), int)
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows)) + np.float32(1e-30)
    for start in range(0, tensor.rows, step):
        slab = floats(tensor, start, min(start + step, tensor.rows))
        lengths = np.sqrt(np.einsum("ij,ij->i", slab, slab)) + np.float32(1e-30)
        angles = (slab @ rows.T) / lengths[:, None] / norms
        here = angles.argmax(axis=0)
        value = angles[here, np.arange(len(rows))]
        better = value > best
        best[better], place[better] = value[better], start + here[better]
    return [int(number) for number in place]
