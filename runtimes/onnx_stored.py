"""Where the numbers of an ONNX graph's initializers lie, those in the graph's own file included.

protobuf keeps ``raw_data`` in one piece, so weights in the graph's own file are read row by row, like those
beside it. What has a field of its own kind (``float_data``) is left out: exporters keep small constants so.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..core.input_files import InputFile
from .onnx_model_file import Initializer, ModelFile
from .onnx_wire import varint

# onnx.proto: the numbers of the fields that lead to initializers, by message.
_GRAPH = 7  # of ModelProto
_NODES, _INITIALIZERS = 1, 5  # of GraphProto
_ATTRIBUTES = 5  # of NodeProto
_SUBGRAPH, _SUBGRAPHS = 6, 11  # of AttributeProto
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9  # of TensorProto

_Field = tuple[int, int, int, int]  # number, its value if that is a number, and where its bytes are


def stored_in(file: ModelFile) -> dict[str, Initializer]:
    """By name the initializers of a graph and its subgraphs whose bytes lie in a file, and where."""
    source = InputFile(file.path)
    data = source.read(0, source.size)
    found: dict[str, Initializer] = {}
    for number, _, start, stop in _fields(data, 0, len(data)):
        if number == _GRAPH:
            found.update(_of_graph(file, data, start, stop))
    return {**found, **file.external}


def _of_graph(file: ModelFile, data: bytes, start: int, stop: int) -> Iterator[tuple[str, Initializer]]:
    graphs = [(start, stop)]
    while graphs:
        for number, _, begin, end in _fields(data, *graphs.pop()):
            if number == _INITIALIZERS:
                yield from _tensor(file, data, begin, end)
            elif number == _NODES:
                graphs += _subgraphs(data, begin, end)


def _subgraphs(data: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    for number, _, begin, end in _fields(data, start, stop):
        if number != _ATTRIBUTES:
            continue
        for inner, _, first, last in _fields(data, begin, end):
            if inner in (_SUBGRAPH, _SUBGRAPHS):
                yield first, last


def _tensor(file: ModelFile, data: bytes, start: int, stop: int) -> Iterator[tuple[str, Initializer]]:
    """The initializer, if it has raw data of the size that its shape says."""
    shape: list[int] = []
    name, element, place = "", 0, (0, 0)
    for number, value, begin, end in _fields(data, start, stop):
        if number == _DIMS:
            shape += [value] if end == begin else _packed(data, begin, end)
        elif number == _TYPE:
            element = value
        elif number == _NAME:
            name = data[begin:end].decode("utf-8", "replace")
        elif number == _RAW:
            place = begin, end
    made = Initializer(file.path, place[0], element, tuple(shape))
    if place[1] > place[0] and made.nbytes == place[1] - place[0]:
        yield name, made


def _packed(data: bytes, start: int, stop: int) -> Iterator[int]:
    while start < stop:
        value, start = varint(data, start)
        yield value


def _fields(data: bytes, start: int, stop: int) -> Iterator[_Field]:
    """The fields of a message that the onnx package has parsed before."""
    while start < stop:
        tag, start = varint(data, start)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, start = varint(data, start)
            yield number, value, start, start
        elif kind == 2:
            size, start = varint(data, start)
            yield number, 0, start, start + size
            start += size
        else:
            start += 4 if kind == 5 else 8
