"""What flows into the matrices of an ONNX graph, as outputs of it besides; nothing else of it changes.

A product may lie in a branch: a decoder that does without and with a cache what two would do is one node that
chooses between two graphs. Both branches then give as many outputs, an empty one where the other multiplies
by a matrix that this one does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

HALF = 1 << 8
"""Added to the accuracy level where inputs are FLOAT16."""
WHOLE = 1 << 9
"""Added where inputs become whole numbers before the product by an operator of the graph's own."""
PASSED = (
    "Reshape",
    "Identity",
    "Transpose",
    "Cast",
    "DequantizeLinear",
)  # what a matrix may pass on its way to a product
_FLOAT, _FLOAT16 = 1, 10  # onnx.proto, TensorProto.DataType
PRODUCTS = ("MatMul", "Gemm", "MatMulNBits", "MatMulInteger")


@dataclass(frozen=True)
class Tap:
    """``value`` of the graph is what a matrix is multiplied by; ``level`` MatMulNBits' own, HALF and WHOLE.

    ``rounded`` are the values that DynamicQuantizeLinear makes of it: whole numbers, their scale and zero.
    """

    value: str
    level: int
    rounded: tuple[str, ...] = ()

    @property
    def values(self) -> tuple[str, ...]:
        """All of these."""
        return self.value, *self.rounded


def tapped(path: str) -> tuple[bytes, dict[str, Tap]]:
    """The graph of a file, which gives what it multiplies as well, and that by the names of matrices.

    What several products share a matrix for is left out.
    """
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    graph = model.graph
    stored = {each.name: each.data_type for each in graph.initializer}
    taps = _taps(graph, stored)
    known = {each.name for each in (*graph.output, *graph.input)}
    values = dict.fromkeys(value for tap in taps.values() for value in tap.values)
    graph.output.extend(onnx.ValueInfoProto(name=each) for each in values if each not in known)
    for number, node in enumerate(graph.node):
        branches = [each.g for each in node.attribute if each.HasField("g")]
        if node.op_type == "If" and len(branches) == 2:
            taps |= _tap_branches(graph, node, branches, stored, number)
    return model.SerializeToString(), taps


def _tap_branches(
    graph: Any, node: Any, branches: list[Any], stored: Mapping[str, int], number: int
) -> dict[str, Tap]:
    import onnx
    from onnx import helper

    inside = [
        _taps(branch, {**stored, **{each.name: each.data_type for each in branch.initializer}})
        for branch in branches
    ]
    made: dict[str, Tap] = {}
    for place, matrix in enumerate(dict.fromkeys(name for taps in inside for name in taps)):
        known = [taps[matrix] for taps in inside if matrix in taps]
        names = [f"kconv.tapped.{number}.{place}.{part}" for part in range(len(known[0].values))]
        for at, (branch, taps) in enumerate(zip(branches, inside, strict=True)):
            for part, name in enumerate(names):
                output = f"{name}.{at}"
                if matrix in taps:
                    value = taps[matrix].values[part]
                    each = helper.make_node("Cast", [value], [output], to=_FLOAT)
                else:
                    nothing = helper.make_tensor(output, _FLOAT, [0], [])
                    each = helper.make_node("Constant", [], [output], value=nothing)
                branch.node.append(each)
                branch.output.append(helper.make_tensor_value_info(output, _FLOAT, None))
        node.output.extend(names)
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
        made[matrix] = Tap(names[0], known[0].level, tuple(names[1:]))
    return made


def _taps(graph: Any, stored: Mapping[str, int]) -> dict[str, Tap]:
    """Of the products of one graph. What is cast for a product is taken before: whether the cast takes place
    onnxruntime decides.
    """
    made = {node.output[0]: node for node in graph.node if node.output}
    cast = {name: node.input[0] for name, node in made.items() if node.op_type == "Cast"}
    found: dict[str, Tap] = {}
    several = set()
    for node in graph.node:
        for matrix, tap in _of_product(node, made, cast, stored):
            if matrix in found:
                several.add(matrix)
            found[matrix] = tap
    return {matrix: tap for matrix, tap in found.items() if matrix not in several}


def _of_product(
    node: Any, made: Mapping[str, Any], cast: Mapping[str, str], stored: Mapping[str, int]
) -> Iterator[tuple[str, Tap]]:
    attributes = {each.name: each.i for each in node.attribute}
    if node.op_type not in PRODUCTS or attributes.get("transA"):
        return
    matrix, turned = node.input[1], False
    while matrix not in stored and matrix in made and made[matrix].op_type in PASSED:
        turned |= made[matrix].op_type == "Cast"
        matrix = made[matrix].input[0]
    if matrix in stored and node.op_type == "MatMulInteger":
        rounding = made.get(node.input[0])
        if rounding is not None and rounding.op_type == "DynamicQuantizeLinear":
            yield matrix, Tap(rounding.input[0], WHOLE, tuple(rounding.output))
    elif matrix in stored:
        level = attributes.get("accuracy_level", 0)
        kind = stored.get(node.input[2]) if node.op_type == "MatMulNBits" else stored[matrix]
        turned |= node.input[0] in cast
        level |= HALF if kind == _FLOAT16 and not turned else 0
        yield matrix.removesuffix(".blocks"), Tap(cast.get(node.input[0], node.input[0]), level)
