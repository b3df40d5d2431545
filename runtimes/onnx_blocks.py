"""Matrices in blocks of whole numbers in ONNX graphs made elsewhere: which they are, and what they stand for.

``com.microsoft.MatMulNBits`` multiplies by a matrix of ``N`` rows and ``K`` columns, of which blocks of
neighbouring ones share a scale and, where there are zero points, one of those (onnxruntime's
docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.input_files import InputFile
from ..core.tensor import Array
from .onnx_graph import messages
from .onnx_model_file import Initializer, ModelFile

_FLOATS = {1: "<f4", 10: "<f2"}  # onnx.proto, TensorProto.DataType
_UINT8 = 2
_BITS = (4, 8)


@dataclass(frozen=True)
class Blocks:
    """A matrix ``(rows, columns)`` in blocks of ``size`` columns; without ``zeros`` zero is in the middle."""

    rows: int
    columns: int
    bits: int
    size: int
    numbers: Initializer
    scales: Initializer
    zeros: Initializer | None

    def read(self, files: Mapping[Any, InputFile], start: int, stop: int) -> Array:
        """Rows of what it stands for, float32."""
        count, blocks = stop - start, -(-self.columns // self.size)
        raw = _rows(self.numbers, files, self.rows, start, stop)
        numbers = _spread(raw.reshape(count, -1), self.bits).reshape(count, blocks, self.size)
        scales = _rows(self.scales, files, self.rows, start, stop).view(_FLOATS[self.scales.element])
        middle: Array = np.full((count, blocks), 1 << (self.bits - 1), np.float32)
        if self.zeros is not None:
            zeros = _rows(self.zeros, files, self.rows, start, stop).reshape(count, -1)
            middle = _spread(zeros, self.bits)[:, :blocks].astype(np.float32)
        values = (numbers.astype(np.float32) - middle[..., None]) * scales.astype(np.float32).reshape(
            count, blocks, 1
        )
        return values.reshape(count, -1)[:, : self.columns]


def blocks_in(graph: Any, stored: Mapping[str, Initializer]) -> dict[str, Blocks]:
    """By the name of the whole numbers, the matrices of all MatMulNBits whose parts lie in files.

    What has an order of columns of its own or numbers of other sizes is left out.
    """
    found = {}
    for node in nodes_of_blocks(graph):
        made = _blocks(node, stored)
        if made is not None:
            found[node.input[1]] = made
    return found


def nodes_of_blocks(graph: Any) -> list[Any]:
    """All MatMulNBits of a graph and its subgraphs."""
    nodes = (each for each in messages(graph) if each.DESCRIPTOR.name == "NodeProto")
    return [node for node in nodes if node.op_type == "MatMulNBits"]


def _blocks(node: Any, stored: Mapping[str, Initializer]) -> Blocks | None:
    attributes = {each.name: each.i for each in node.attribute}
    rows, columns, size = (attributes.get(name, 0) for name in ("N", "K", "block_size"))
    bits = attributes.get("bits", 4)
    given = [*node.input, "", "", ""][1:5]
    numbers, scales, zeros = (stored.get(name) for name in given[:3])
    if numbers is None or scales is None or given[3] or (given[2] and zeros is None):
        return None
    if bits not in _BITS or min(rows, columns, size) < 1 or scales.element not in _FLOATS:
        return None
    blocks = -(-columns // size)
    right = numbers.element == _UINT8 and numbers.nbytes == rows * blocks * (size * bits // 8)
    right &= scales.nbytes == rows * blocks * np.dtype(_FLOATS[scales.element]).itemsize
    if zeros is not None:
        right &= zeros.element == _UINT8 and zeros.nbytes == rows * -(-blocks * bits // 8)
    return Blocks(rows, columns, bits, size, numbers, scales, zeros) if right else None


def _rows(part: Initializer, files: Mapping[Any, InputFile], count: int, start: int, stop: int) -> Array:
    """The bytes of some of the ``count`` rows."""
    assert part.offset is not None
    size = part.nbytes // count
    return np.frombuffer(files[part.path].read(part.offset + size * start, size * (stop - start)), np.uint8)


def _spread(raw: Array, bits: int) -> Array:
    """The whole numbers, the low half of a byte first."""
    if bits == 8:
        return raw
    return np.stack([raw & 15, raw >> 4], -1).reshape(len(raw), -1)


def graph_of(file: ModelFile) -> Any:
    """The graph, which has been looked through before."""
    import onnx

    return onnx.load_model(file.path, load_external_data=False).graph
