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
_BYTES = (2, 3)  # unsigned and signed
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


@dataclass(frozen=True)
class Scaled:
    """Whole numbers with a scale and a zero for all, or for each column, as quantize_dynamic makes them."""

    numbers: Initializer
    scale: Array
    zero: Array


def scaled_in(graph: Any, stored: Mapping[str, Initializer]) -> dict[str, Scaled]:
    """By name, all of a graph: what DequantizeLinear is given, and ``X_quantized`` with ``X_scale``."""
    from onnx import numpy_helper

    small = {each.name: each for each in graph.initializer if len(each.dims) < 2}
    parts = {}
    for name in stored:
        begin = name.removesuffix("_quantized")
        parts[name] = f"{begin}_scale", f"{begin}_zero_point"
    for node in _nodes(graph):
        if node.op_type == "DequantizeLinear" and node.input[0] in stored and not _in_blocks(node):
            parts[node.input[0]] = node.input[1], [*node.input, ""][2]
    found = {}
    for name, (scale, zero) in parts.items():
        numbers = stored[name]
        if numbers.element not in _BYTES or len(numbers.shape) != 2 or scale not in small:
            continue
        values = [
            numpy_helper.to_array(small[each]) if each in small else np.zeros(1) for each in (scale, zero)
        ]
        scales, zeros = (each.astype(np.float32).ravel() for each in values)
        if {scales.size, zeros.size} <= {1, numbers.shape[1]}:
            found[name] = Scaled(numbers, scales, zeros)
    return found


def _in_blocks(node: Any) -> bool:
    """Whether other numbers than those of a column share a scale."""
    attributes = {each.name: each.i for each in node.attribute}
    return bool(attributes.get("block_size")) or attributes.get("axis", 1) not in (1, -1)


def nodes_of_blocks(graph: Any) -> list[Any]:
    """All MatMulNBits of a graph and its subgraphs."""
    return [node for node in _nodes(graph) if node.op_type == "MatMulNBits"]


def whole_in(graph: Any) -> list[tuple[Any, str]]:
    """All nodes that take a matrix of whole numbers, and its name."""
    stored = {each.name for each in graph.initializer}
    taken = [
        (node, node.input[1]) for node in _nodes(graph) if node.op_type in ("MatMulNBits", "MatMulInteger")
    ]
    apart = (node for node in _nodes(graph) if node.op_type == "DequantizeLinear")
    return [*taken, *((node, node.input[0]) for node in apart if node.input[0] in stored)]


def _nodes(graph: Any) -> list[Any]:
    return [each for each in messages(graph) if each.DESCRIPTOR.name == "NodeProto"]


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
