"""A small builder of ONNX graphs. Weights stay lazy tensors, nothing of the onnx package is needed here.

Values are names, as in ONNX itself. A family's description calls ``op`` for each operator and ``linear``,
``weight`` and ``embedding`` where the checkpoint's tensors come in; in what format those are stored, the
graph knows and the description need not. Positions travel as rows: hidden states are
``(batch * length, hidden)`` but where attention needs ``(batch, length, hidden)``. What flows is FLOAT, or
FLOAT16 where ``halves`` are asked for; angles, routers and logits are FLOAT always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

from ...core.tensor import Array, Tensor
from ...quant.formats import F16, F32, Format
from ...quant.onnx_packing import matmul_attributes, packed_shapes

if TYPE_CHECKING:
    from .flavour import Flavour

Attribute = int | float | str | tuple[int, ...]
Size = int | str  # a number, or the name of a length that is known when the graph runs

MICROSOFT = "com.microsoft"  # onnxruntime's own operators
SIMPLIFIED = "SimplifiedLayerNormalization"  # onnxruntime's, which it keeps in ONNX's own domain
PRODUCER = "kconv"  # whose names lead back to the checkpoint's


class Element(IntEnum):
    """Element types by ONNX's number (onnx.proto, TensorProto.DataType)."""

    FLOAT = 1
    UINT8 = 2
    INT32 = 6
    INT64 = 7
    BOOL = 9
    FLOAT16 = 10

    @property
    def storage(self) -> np.dtype[np.generic]:
        """The numpy type with those bits."""
        return np.dtype(_STORAGE[self])


_STORAGE = {
    Element.FLOAT: "<f4",
    Element.UINT8: "u1",
    Element.INT32: "<i4",
    Element.INT64: "<i8",
    Element.BOOL: "?",
    Element.FLOAT16: "<f2",
}
_OF_STORAGE = {np.dtype(storage): element for element, storage in _STORAGE.items()}
_OF_FORMAT = {F32: Element.FLOAT, F16: Element.FLOAT16}


@dataclass(frozen=True)
class Node:
    """One operator; an empty name stands for an input that is left out."""

    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True)
class Declared:
    """An input or output of the graph, or an initializer: name, type and shape."""

    name: str
    element: Element
    shape: tuple[Size, ...]

    @property
    def nbytes(self) -> int:
        """Bytes, of something whose shape is all numbers."""
        return math.prod(int(size) for size in self.shape) * self.element.storage.itemsize


@dataclass(frozen=True)
class Weight:
    """A tensor of the checkpoint in the format it is stored in.

    ``parts`` are the initializers it becomes: itself, or the blocks and the scales of a quantized matrix.
    The bytes of each part go row by row with those of ``tensor``.
    """

    tensor: Tensor
    format: Format
    parts: tuple[Declared, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts)


class Graph:
    """Collects nodes, inputs, outputs, constants and weights, in the order they are named.

    ``tensors`` are those the description may ask for, by the checkpoint's names; ``formats`` says how each is
    stored (F32 where it says nothing): what is multiplied or looked up F32, F16, Q8_0 or Q4_0, all else F32.
    ``accuracy_level`` is MatMulNBits's: 0 keeps the activations, 4 makes whole numbers of them first.
    ``flavour`` decides which operators norms, rotations and attention become. ``halves``: what flows and the
    cache are FLOAT16, and what is F32 is made so.
    """

    def __init__(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        formats: Mapping[str, Format],
        accuracy_level: int = 0,
        *,
        flavour: Flavour,
        halves: bool = False,
    ) -> None:
        self.name = name
        self.flow = Element.FLOAT16 if halves else Element.FLOAT
        self.tensors = tensors
        self.formats = formats
        self.accuracy_level = accuracy_level
        self.flavour = flavour
        self.nodes: list[Node] = []
        self._named = 0
        self._tables: set[str] = set()
        self.inputs: list[Declared] = []
        self.outputs: list[Declared] = []
        self.constants: dict[str, Array] = {}
        self.weights: dict[str, Weight] = {}
        self._constant_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def input(self, name: str, element: Element, shape: Sequence[Size]) -> str:
        """Declare an input of the graph; returns its name."""
        self.inputs.append(Declared(name, element, tuple(shape)))
        return name

    def output(self, name: str, element: Element, shape: Sequence[Size]) -> None:
        """Declare the value ``name`` an output of the graph."""
        self.outputs.append(Declared(name, element, tuple(shape)))

    def op(
        self, kind: str, *inputs: str | None, name: str | None = None, **attributes: Attribute | None
    ) -> str:
        """An operator with one result, called ``name`` or what is free; returns the result's name."""
        return self.ops(kind, *inputs, outputs=(name,), domain="", **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: str | None,
        outputs: Sequence[str | None],
        domain: str = "",
        **attributes: Attribute | None,
    ) -> tuple[str, ...]:
        """A node with a result for each of ``outputs``: a name, None for a free one, "" to leave it out.

        Inputs and attributes that are None are left out.
        """
        free = f"{kind}_{self._named}"
        self._named += 1
        names = tuple(
            (free if place == 0 else f"{free}_{place}") if output is None else output
            for place, output in enumerate(outputs)
        )
        given = [each or "" for each in inputs]
        while given and not given[-1]:  # left out is left out: tools take an empty last name for an input
            given.pop()
        said = {each: value for each, value in attributes.items() if value is not None}
        self.nodes.append(Node(kind, domain, tuple(given), names, said))
        return names

    @property
    def foreign(self) -> list[str]:
        """Values made by operators whose results ONNX cannot tell the type of: that of what flows."""
        results = {each.name for each in self.outputs}
        nodes = (node for node in self.nodes if node.domain == MICROSOFT or node.kind == SIMPLIFIED)
        return [name for node in nodes for name in node.outputs if name and name not in results]

    def taken_back(self, name: str) -> Node | None:
        """The node that makes ``name``, taken out of the graph; None where a node uses its result already."""
        for place in reversed(range(len(self.nodes))):
            if name in self.nodes[place].outputs:
                return self.nodes.pop(place)
            if name in self.nodes[place].inputs:
                return None
        return None

    def constant(self, value: Array) -> str:
        """A small array, kept in the graph's own file; the same array is kept once."""
        value = np.ascontiguousarray(value).reshape(np.shape(value))
        key = (value.dtype.str, value.shape, value.tobytes())
        name = self._constant_names.setdefault(key, f"constant_{len(self.constants)}")
        self.constants[name] = value
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64, as shapes and axes are given."""
        return self.constant(np.array(values, np.int64))

    def number(self, value: float, element: Element | None = None) -> str:
        """A scalar, of the type of what flows unless another is named."""
        return self.constant(np.array(value, (self.flow if element is None else element).storage))

    def cast(self, value: str, element: Element) -> str:
        """``value`` in another type."""
        return self.op("Cast", value, to=int(element))

    def flowing(self, exact: str) -> str:
        """A FLOAT value in the type of what flows."""
        return exact if self.flow == Element.FLOAT else self.cast(exact, self.flow)

    def exact(self, flowing: str) -> str:
        """A value of what flows as FLOAT."""
        return flowing if self.flow == Element.FLOAT else self.cast(flowing, Element.FLOAT)

    def weight(self, name: str) -> str:
        """The checkpoint's tensor of that name, F32 or F16, as an initializer; KeyError if there is none.

        What is F32 becomes what flows.
        """
        (held,) = self._stored(name, self._whole(name)).parts
        return self.flowing(held.name) if held.element == Element.FLOAT else held.name

    def linear(self, rows: str, matrix: str, bias: str | None = None) -> str:
        """``rows`` (n, in) times the transposed ``matrix`` (out, in), plus ``bias`` (out,): (n, out).

        ``matrix`` and ``bias`` are names in the checkpoint, whose rows stay as they lie there. A matrix
        stored as F16 computes in FLOAT16, one in blocks of whole numbers by MatMulNBits.
        """
        format = self.formats.get(matrix, F32)
        addend = None if bias is None else self.weight(bias)
        if format == F32 or (format == F16 and self.flow == Element.FLOAT16):
            held = self.weight(matrix)
            if matrix in self._tables:  # quantize_dynamic turns a Gemm's weights over where they lie
                held = self.op("Identity", held)
            return self.op("Gemm", rows, held, addend, transB=1)
        if format == F16:
            halves = self.op("Gemm", self.cast(rows, Element.FLOAT16), self.weight(matrix), transB=1)
            product = self.cast(halves, Element.FLOAT)
        else:
            product = self._multiplied_by_blocks(rows, matrix, format)
        return product if addend is None else self.op("Add", product, addend)

    def _multiplied_by_blocks(self, rows: str, matrix: str, format: Format) -> str:
        shape = self.tensors[matrix].shape
        packed = packed_shapes(format, shape)
        blocks, scales = self._stored(matrix, self._in_blocks(matrix, packed.weights)).parts
        blocks_name = blocks.name
        if blocks.shape != packed.weights:  # a table of embeddings, too
            blocks_name = self.op("Reshape", blocks_name, self.integers(*packed.weights))
        attributes = matmul_attributes(format, shape, self.accuracy_level)
        given = (rows, blocks_name, scales.name)
        return self.ops("MatMulNBits", *given, outputs=(None,), domain=MICROSOFT, **attributes)[0]

    def embedding(self, ids: str, table: str) -> str:
        """The rows ``ids`` of the checkpoint's ``table`` (rows, hidden): ``(*ids, hidden)``."""
        format = self.formats.get(table, F32)
        self._tables.add(table)
        if format in _OF_FORMAT:
            embedded = self.op("Gather", self.weight(table), ids)
            return (
                self.cast(embedded, Element.FLOAT)
                if format == F16 and self.flow != Element.FLOAT16
                else embedded
            )
        shape = packed_shapes(format, self.tensors[table].shape).table
        blocks, scales = (each.name for each in self._stored(table, self._in_blocks(table, shape)).parts)
        return self.flavour.looked_up(self, ids, blocks, scales, format)

    def _stored(self, name: str, parts: tuple[Declared, ...]) -> Weight:
        """The weight of that name, stored as ``parts`` unless it is there already."""
        format = self.formats.get(name, F32)
        return self.weights.setdefault(name, Weight(self.tensors[name], format, parts))

    def _whole(self, name: str) -> tuple[Declared, ...]:
        return (Declared(name, _OF_FORMAT[self.formats.get(name, F32)], self.tensors[name].shape),)

    def _in_blocks(self, name: str, shape: tuple[int, ...]) -> tuple[Declared, ...]:
        scales = packed_shapes(self.formats[name], self.tensors[name].shape).scales
        return (
            Declared(f"{name}.blocks", Element.UINT8, shape),
            Declared(f"{name}.scales", self.flow, scales),
        )


def element_of(array: Array) -> Element:
    """The element type of a numpy array."""
    return _OF_STORAGE[array.dtype]
