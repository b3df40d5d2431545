"""One file of an ONNX folder: what is in it, looked through before onnxruntime opens it. No weight is read.

The file comes from a stranger. It names the files its weights lie in, so places, links, sizes and shapes are
looked at wherever a tensor can stand: in initializers, attributes, subgraphs and functions.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, EnvironmentProblem, InputError
from ..core.input_files import InputFile, is_plain_name, quoted, refuse_lfs_pointer, stays_with
from .onnx_graph import elements, messages, refuse_functions, refuse_message, refuse_overlap
from .onnx_least import Release, least_for_node, least_for_opset, windows_of
from .onnx_wire import more_parts_than

INSTALL = "pip install 'kconv[onnx]'"
_BEGINNING = 100  # bytes
_LARGEST = (1 << 31) - 1  # protobuf's own limit
_CROWD = 1_500_000  # fields of messages; a graph of ten thousand nodes has some hundred thousand
_KNOWN_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
_AGAIN = "make the folder again with kconv to-onnx"
_STRANGER = "do not use this folder unless you trust its origin"
_MATRICES = {1: "f32", 10: "f16"}
_BYTES = (2, 3)  # unsigned and signed
_OF_BYTES = frozenset(
    {"MatMulInteger", "QLinearMatMul", "DequantizeLinear"}
)  # with a scale a matrix or column
# Bits of an element by ONNX's number of its type (onnx.proto, TensorProto.DataType); texts have no size.
_BITS = (
    dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8)
    | dict.fromkeys((4, 5, 10, 16), 16)
    | dict.fromkeys((1, 6, 12), 32)
    | dict.fromkeys((7, 11, 13, 14), 64)
    | {15: 128, 21: 4, 22: 4, 23: 4, 25: 2, 26: 2}
)
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_MOST_IN_ONE = 8  # elements in a number of such a field


@dataclass(frozen=True)
class Initializer:
    """An initializer, whose bytes lie in the file ``path`` at ``offset`` (None: in the graph's own file).

    ``element`` is ONNX's number of its type.
    """

    path: Path
    offset: int | None
    element: int
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """0 for texts, whose size no header says."""
        return math.prod(self.shape) * _BITS.get(self.element, 0) // 8


@dataclass(frozen=True)
class Value:
    """An input or output: its type, and its shape of numbers and named lengths."""

    name: str
    type: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ModelFile:
    """A file of ONNX: ``data`` are the files its weights lie in, ``operators`` count its nodes by kind,
    ``weights`` what it multiplies and looks up by format, ``opsets`` are versions by domain, ``least`` is the
    first onnxruntime that computes it (onnx_least.py). ``near`` counts the windows of GroupQueryAttention, of
    layers in which a query sees no further back than so many positions.
    """

    path: Path
    producer: str
    opsets: Mapping[str, int]
    operators: Mapping[str, int]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    initializers: Mapping[str, Initializer]
    weights: Counter[str]
    data: tuple[Path, ...]
    least: Release
    near: Mapping[int, int]

    @property
    def external(self) -> dict[str, Initializer]:
        """Initializers that lie outside of the graph's own file."""
        return {name: stored for name, stored in self.initializers.items() if stored.offset is not None}


def read_model_file(path: Path) -> ModelFile:
    """Look through a file of ONNX.

    Raises InputError for one that is damaged, names weights anywhere but beside itself or holds operators
    onnxruntime does not have, and EnvironmentProblem where the onnx package is missing.
    """
    model = _parsed(path)
    refuse_functions(path, model)
    sizes: dict[Path, int] = {}
    weights: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    near: Counter[int] = Counter()
    external = nodes = whole = 0
    opsets = {each.domain: each.version for each in model.opset_import}
    least = least_for_opset(opsets.get("", 0))
    domains = _KNOWN_DOMAINS | {function.domain for function in model.functions}
    for message in messages(model):
        kind = message.DESCRIPTOR.name
        nodes += kind == "NodeProto"
        refuse_message(path, kind, nodes)
        if kind == "TensorProto":
            initializer = _place(path, message, sizes)
            external += initializer.nbytes if initializer.offset is not None else 0
            if initializer.element in _MATRICES and len(initializer.shape) > 1:
                weights[_MATRICES[initializer.element]] += math.prod(initializer.shape)
            elif initializer.element in _BYTES and len(initializer.shape) == 2:
                whole += math.prod(initializer.shape)
        elif kind == "NodeProto":
            if message.domain not in domains:
                name = quoted(f"{message.domain}.{message.op_type}")
                raise InputError(f"{path} uses the unknown operator {name}", hint=_AGAIN)
            operators[f"{message.domain}.{message.op_type}".removeprefix(".")] += 1
            least = max(least, least_for_node(message))
            near.update(windows_of(message))
            if message.op_type == "MatMulNBits":
                weights += _blocks(path, message)
    if not _OF_BYTES.isdisjoint(operators):
        weights["q8_0"] += whole
    graph = model.graph
    initializers = {tensor.name: _place(path, tensor, sizes) for tensor in graph.initializer}
    if len(initializers) < len(graph.initializer):
        raise InputError(f"{path} contains several weights with the same name", hint=_STRANGER)
    refuse_overlap(path, external, sizes)
    return ModelFile(
        path,
        model.producer_name,
        opsets,
        dict(operators),
        tuple(_value(path, declared) for declared in graph.input),
        tuple(_value(path, declared) for declared in graph.output),
        initializers,
        weights,
        tuple(sizes),
        least,
        dict(near),
    )


def size_of(path: Path) -> int:
    """Raises InputError unless it is a file that can be read."""
    try:
        return InputFile(path).size
    except CheckpointError as error:  # it speaks of files of a checkpoint
        raise InputError(error.message, hint="complete the folder or make it again") from error


def element_name(element: int) -> str:
    """``f32`` and ``f16`` as formats are called, others as ONNX calls them."""
    import onnx

    known = element in onnx.TensorProto.DataType.values()
    return _MATRICES.get(element) or (onnx.TensorProto.DataType.Name(element).lower() if known else "unknown")


def _parsed(path: Path) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise EnvironmentProblem("onnx is not installed; ONNX folders need it", hint=INSTALL) from error
    size = size_of(path)
    if size > _LARGEST:
        raise InputError(f"{path} has {size:,} bytes, more than an ONNX file can have (2 GiB)")
    try:
        data = InputFile(path).read(0, size)
        refuse_lfs_pointer(path, data[:_BEGINNING])
    except CheckpointError as error:
        raise InputError(error.message, hint=error.hint) from error
    if size > _CROWD and more_parts_than(data, onnx.ModelProto.DESCRIPTOR, _CROWD):
        raise InputError(
            f"{path} contains millions of parts, far more than any language model", hint=_STRANGER
        )
    try:
        model = onnx.ModelProto.FromString(data)
    except Exception as error:  # protobuf's classes differ from version to version
        raise InputError(f"{path} is not an ONNX file: {quoted(str(error))}", hint=_AGAIN) from error
    if not model.graph.node:
        raise InputError(f"{path} contains no graph, expected an ONNX model", hint=_AGAIN)
    return model


def _place(path: Path, tensor: Any, sizes: dict[Path, int]) -> Initializer:
    """Where a tensor lies; adds the size of that file. Raises InputError unless it can lie there."""
    where, shape = f"{path}: the weights of {quoted(tensor.name)}", tuple(tensor.dims)
    count = elements(shape, where)
    initializer = Initializer(path, None, tensor.data_type, shape)
    if not tensor.external_data and not tensor.data_location:
        size = 8 * len(tensor.raw_data) // _BITS.get(tensor.data_type, 8)
        size += _MOST_IN_ONE * sum(len(getattr(tensor, field)) for field in _FIELDS)
        if count > size:
            problem = f"{where} have the shape {quoted(list(shape))}, more numbers than the file contains"
            raise InputError(problem, hint=_AGAIN)
        return initializer
    location = {entry.key: entry.value for entry in tensor.external_data}
    data = _data_file(path, where, location.get("location", ""))
    if data not in sizes:
        sizes[data] = size_of(data)
    offset, length = (location.get(key, default) for key, default in (("offset", "0"), ("length", "")))
    if len(location) < len(tensor.external_data) or not all(
        re.fullmatch(r"[0-9]{1,18}", number) for number in (offset, length or "0")
    ):
        problem = quoted([offset, length])
        raise InputError(
            f"{where} have offset and length {problem}, expected two whole numbers", hint=_STRANGER
        )
    if tensor.data_type not in _BITS or (length and int(length) != initializer.nbytes):
        problem = (
            f"{where} have {quoted(length)} bytes, expected {initializer.nbytes:,} for their type and shape"
        )
        raise InputError(problem, hint=_AGAIN)
    end = int(offset) + initializer.nbytes
    if end > sizes[data]:
        raise InputError(
            f"{where} end at byte {end:,} of {data}, which has {sizes[data]:,}",
            hint="complete the download or make the folder again",
        )
    return Initializer(data, int(offset), tensor.data_type, shape)


def _data_file(path: Path, where: str, location: str) -> Path:
    """The file of weights beside the model. A link may lead to where a link of the model leads, as in the
    Hub's cache, and nowhere else (onnxruntime's own rule).
    """
    if not is_plain_name(location):
        raise InputError(
            f"{where} are located in {quoted(location)}, expected the name of a file in the model's folder",
            hint=_STRANGER,
        )
    data = path.with_name(location)
    if not stays_with(data, path):
        raise InputError(
            f"{data} is a link to {quoted(str(data.resolve()))}, expected a file in the model's folder",
            hint="if you trust the folder's origin, replace the link by a copy of the file",
        )
    return data


def _blocks(path: Path, node: Any) -> Counter[str]:
    """The weights of a matrix in blocks of whole numbers."""
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    count = elements(
        [attributes.get("N", 0), attributes.get("K", 0)], f"{path}: the weights of {quoted(node.name)}"
    )
    return Counter({"q8_0" if attributes.get("bits", 4) == 8 else "q4_0": count})


def _value(path: Path, declared: Any) -> Value:
    tensor = declared.type.tensor_type
    elements(
        [max(each.dim_value, 1) for each in tensor.shape.dim], f"{path}: values of {quoted(declared.name)}"
    )
    shape = (each.dim_value if each.HasField("dim_value") else each.dim_param for each in tensor.shape.dim)
    return Value(declared.name, element_name(tensor.elem_type), tuple(shape))
