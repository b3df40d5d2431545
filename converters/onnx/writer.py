"""Writing ONNX: graphs in small files of their own, the weights of all of them in one file beside.

Sizes and offsets are planned first, then the weights pass through once, slab by slab, on a few threads; the
bytes do not depend on the number of threads. A weight several graphs use is written once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from onnx import ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto, helper

from ...core.cores import available_cores
from ...core.files import explained
from ...core.gguf_file import aligned
from ...core.progress import Progress, silent
from ...core.tensor import Array
from ...quant import native
from ...quant.encoders import Encoder
from ...quant.onnx_packing import PACKED, pack
from ...quant.slabs import Scratch
from ..bad_weights import bad_weights_error
from ..gguf_writer import Written, check_room, write_at
from ..pieces import Piece, cut, work_through
from .graph import MICROSOFT, OPSET, PRODUCER, Declared, Graph, Node, Weight, element_of

DATA_NAME = "model.onnx_data"

_IR_VERSION = 11  # of ONNX 1.18, as that opset (onnx/helper.py, VERSION_TABLE)
# Files are mapped by pages, and onnxruntime maps what begins on one (docs/ExternalData.md of onnx).
_PAGE = 4096


@dataclass(frozen=True)
class DataPlan:
    """The file of weights to be: each weight once, and where each of its parts begins."""

    weights: tuple[Weight, ...]
    offsets: Mapping[str, int]
    nbytes: int


def plan_data(graphs: Sequence[Graph]) -> DataPlan:
    """Sizes and places of the weights of all graphs, in the order they are first named."""
    weights: dict[str, Weight] = {}
    for graph in graphs:
        for name, weight in graph.weights.items():
            known = weights.setdefault(name, weight)
            assert known.parts == weight.parts, f"{name} is stored in two ways"
    offsets: dict[str, int] = {}
    end = 0
    for weight in weights.values():
        for part in weight.parts:
            offsets[part.name] = aligned(end, _PAGE)
            end = offsets[part.name] + part.nbytes
    return DataPlan(tuple(weights.values()), offsets, end)


def write_onnx(
    graphs: Mapping[str, Graph],
    folder: Path,
    data_name: str = DATA_NAME,
    *,
    threads: int | None = None,
    allow_nan: bool = False,
    progress: Progress = silent,
) -> Written:
    """Write ``graphs``, by file name, and their weights into ``folder``, which must be there.

    The folder becomes visible as a whole by ``core.folders.atomic_folder``. ``Written.sizes`` are those of
    the graphs' files in their order, then that of the weights. Raises NonFiniteError (unless ``allow_nan``),
    EnvironmentProblem and what reading the tensors raises.
    """
    plan = plan_data(list(graphs.values()))
    protos = {name: model_proto(graph, plan, data_name).SerializeToString() for name, graph in graphs.items()}
    check_room((folder / name, size) for name, size in {**_sizes(protos), data_name: plan.nbytes}.items())
    harmed: set[str] = set()
    _write_data(folder / data_name, plan, threads or available_cores(), allow_nan, harmed, progress)
    for name, data in protos.items():
        with explained(folder / name):
            (folder / name).write_bytes(data)
    names = tuple(weight.tensor.name for weight in plan.weights if weight.tensor.name in harmed)
    sizes = (*_sizes(protos).values(), plan.nbytes)
    return Written(sizes, names, native.notes(weight.format for weight in plan.weights))


def _sizes(protos: Mapping[str, bytes]) -> dict[str, int]:
    return {name: len(data) for name, data in protos.items()}


def _write_data(
    path: Path, plan: DataPlan, threads: int, allow_nan: bool, harmed: set[str], progress: Progress
) -> None:
    tensors = [weight.tensor for weight in plan.weights]
    with explained(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:

        def write(rows: Piece, scratch: Scratch) -> int:
            weight, tensor = plan.weights[rows.index], tensors[rows.index]
            source = tensor.read(rows.start, rows.stop)
            slab = Encoder([weight.format]).encode(source, tensor.dtype, scratch)
            if not slab.finite or slab.overflowed or slab.impossible:
                if not allow_nan or slab.impossible:
                    raise bad_weights_error(slab, tensor, rows)
                harmed.add(tensor.name)
            for part, data in zip(weight.parts, _parts(weight, slab.data[0]), strict=True):
                offset = plan.offsets[part.name] + part.nbytes * rows.start // tensor.rows
                write_at(handle, data.data.cast("B"), offset)
            return source.nbytes

        with explained(path):
            os.truncate(handle, plan.nbytes)
            work_through(
                cut(tensors),
                write,
                threads=threads,
                stage="write",
                total=sum(tensor.nbytes for tensor in tensors),
                progress=progress,
            )
    finally:
        os.close(handle)


def _parts(weight: Weight, data: Array) -> tuple[Array, ...]:
    """The bytes of some rows, for each part of the weight."""
    if weight.format not in PACKED:
        return (data,)
    packed = pack(weight.format, data, weight.tensor.shape[-1])
    return packed.weights, packed.scales


def model_proto(graph: Graph, plan: DataPlan, data_name: str = DATA_NAME) -> ModelProto:
    """The graph as onnx has it, its weights named as parts of the file ``data_name``."""
    parts = [part for weight in graph.weights.values() for part in weight.parts]
    proto = helper.make_graph(
        [_node(node) for node in graph.nodes],
        graph.name,
        [_value(each) for each in graph.inputs],
        [_value(each) for each in graph.outputs],
        initializer=[*_constants(graph), *(_external(part, plan, data_name) for part in parts)],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    if any(node.domain == MICROSOFT for node in graph.nodes):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    return helper.make_model(
        proto,
        opset_imports=opsets,
        ir_version=_IR_VERSION,
        producer_name=PRODUCER,
        producer_version=version("kconv"),
    )


def _node(node: Node) -> NodeProto:
    made = helper.make_node(node.kind, node.inputs, node.outputs, node.outputs[0], domain=node.domain)
    made.attribute.extend(helper.make_attribute(*pair) for pair in sorted(node.attributes.items()))
    return made


def _value(declared: Declared) -> ValueInfoProto:
    return helper.make_tensor_value_info(declared.name, int(declared.element), declared.shape)


def _constants(graph: Graph) -> list[TensorProto]:
    return [
        helper.make_tensor(name, int(element_of(value)), value.shape, value.tobytes(), raw=True)
        for name, value in graph.constants.items()
    ]


def _external(part: Declared, plan: DataPlan, data_name: str) -> TensorProto:
    """An initializer whose bytes lie in the file of weights."""
    place = {"location": data_name, "offset": plan.offsets[part.name], "length": part.nbytes}
    return TensorProto(
        name=part.name,
        data_type=int(part.element),
        dims=[int(size) for size in part.shape],
        data_location=TensorProto.EXTERNAL,
        external_data=[StringStringEntryProto(key=key, value=str(value)) for key, value in place.items()],
    )
