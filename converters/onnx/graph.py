"""A small builder of ONNX graphs. Weights stay lazy tensors, nothing of the onnx package is needed here.

Values are names, as in ONNX itself. A family's description calls ``op`` for each operator and ``linear``,
``weight`` and ``embedding`` where the checkpoint's tensors come in; in what format those are stored, the
graph knows and the description need not. Positions travel as rows: hidden states are
``(batch * length, hidden)`` but where attention needs ``(batch, length, hidden)``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from ...core.tensor import Array, Tensor
from ...quant.formats import F16, F32, Format

Attribute = int | float | str | tuple[int, ...]
Size = int | str  # a number, or the name of a length that is known when the graph runs

MICROSOFT = "com.microsoft"  # onnxruntime's own operators


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


class Graph:
    """Collects nodes, inputs, outputs, constants and weights, in the order they are named.

    ``tensors`` are those the description may ask for, by the checkpoint's names; ``formats`` says how each is
    stored (F32 where it says nothing).
    """

    def __init__(self, name: str, tensors: Mapping[str, Tensor], formats: Mapping[str, Format]) -> None:
        self.name = name
        self.tensors = tensors
        self.formats = formats
        self.nodes: list[Node] = []
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

    def op(self, kind: str, *inputs: str | None, name: str | None = None, **attributes: Attribute) -> str:
        """An operator with one result, called ``name`` or what is free; returns the result's name."""
        return self.ops(kind, *inputs, outputs=(name,), **attributes)[0]

    def ops(
        self,
        kind: str,
        *inputs: str | None,
        outputs: Sequence[str | None],
        domain: str = "",
        **attributes: Attribute,
    ) -> tuple[str, ...]:
        """An operator with one result for each of ``outputs``: a name, or None for one that is free."""
        free = f"{kind}_{len(self.nodes)}"
        names = tuple(
            output or (free if place == 0 else f"{free}_{place}") for place, output in enumerate(outputs)
        )
        given = tuple(each or "" for each in inputs)
        self.nodes.append(Node(kind, domain, given, names, attributes))
        return names

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

    def number(self, value: float, element: Element = Element.FLOAT) -> str:
        """A scalar."""
        return self.constant(np.array(value, element.storage))

    def cast(self, value: str, element: Element) -> str:
        """``value`` in another type."""
        return self.op("Cast", value, to=int(element))

    def weight(self, name: str) -> str:
        """The checkpoint's tensor of that name, F32 or F16, as an initializer; KeyError if there is none."""
        if name not in self.weights:
            tensor, format = self.tensors[name], self.formats.get(name, F32)
            part = Declared(name, _OF_FORMAT[format], tensor.shape)
            self.weights[name] = Weight(tensor, format, (part,))
        return name

    def linear(self, rows: str, matrix: str, bias: str | None = None) -> str:
        """``rows`` (n, in) times the transposed ``matrix`` (out, in), plus ``bias`` (out,): (n, out).

        ``matrix`` and ``bias`` are names in the checkpoint. ``rows`` must be of the matrix's type: that of
        its initializer, FLOAT for a quantized one. The matrix stays as the checkpoint has it.
        """
        terms = [rows, self.weight(matrix), *([] if bias is None else [self.weight(bias)])]
        return self.op("Gemm", *terms, transB=1)

    def embedding(self, ids: str, table: str) -> str:
        """The rows ``ids`` of the checkpoint's ``table`` (rows, hidden): ``(*ids, hidden)``."""
        return self.op("Gather", self.weight(table), ids)


def element_of(array: Array) -> Element:
    """The element type of a numpy array."""
    return _OF_STORAGE[array.dtype]
