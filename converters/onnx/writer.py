"""Writing ONNX: graphs in small files of their own, the weights of all of them in one file beside.

Sizes and offsets are planned first, then the weights pass through once, slab by slab, on a few threads; the
bytes do not depend on the number of threads. A weight several graphs use is written once.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from onnx import ModelProto, NodeProto, StringStringEntryProto, TensorProto, ValueInfoProto, helper

from ...core.claims import new_mark
from ...core.cores import available_cores
from ...core.elsewhere import Stream
from ...core.files import explained
from ...core.gguf_file import aligned
from ...core.progress import Progress, silent
from ...core.room import check_room
from ...core.system_files import begin_to_sync, bytes_on_disk, open_to_read, open_to_write, write_at
from ...core.tensor import Array
from ...quant import native
from ...quant.encoders import encoder_of
from ...quant.importance import Importance
from ...quant.onnx_packing import PACKED, pack
from ...quant.slabs import Scratch
from ..bad_weights import has_bad_weights
from ..done_pieces import Done, read_done, resumed_text
from ..gguf_writer import Written
from ..journal import Journal, JournalFolder
from ..pieces import Piece, cut, source_bytes, with_checksums, work_through
from .graph import MICROSOFT, PRODUCER, Declared, Graph, Node, Weight, element_of

DATA_NAME = "model.onnx_data"

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


@dataclass(frozen=True)
class Journaled:
    """A journal's folder, and what the names of writers' files in it begin with for one file of weights.

    ``announce`` is told how much an earlier run has done.
    """

    folder: JournalFolder
    prefix: str
    announce: Callable[[str], None]


def write_onnx(
    graphs: Mapping[str, Graph],
    folder: Path,
    data_name: str = DATA_NAME,
    *,
    threads: int | None = None,
    allow_nan: bool = False,
    journaled: Journaled | None = None,
    progress: Progress = silent,
    stream: Stream | None = None,
    importance: Importance | None = None,
) -> Written:
    """Write ``graphs``, by file name, and their weights into ``folder``, which must be there.

    The folder becomes visible as a whole by ``core.folders.atomic_folder``. What ``journaled`` says an
    earlier run has written of the weights is checked, and stays. ``Written.sizes`` are those of the graphs'
    files in their order, then that of the weights. Raises NonFiniteError (unless ``allow_nan``),
    EnvironmentProblem and what reading the tensors raises.
    """
    plan, protos = plan_onnx(graphs, data_name)
    path, there = folder / data_name, 0
    if path.exists():
        there = bytes_on_disk(path.stat())
    check_room([*((folder / name, len(data)) for name, data in protos.items()), (path, plan.nbytes - there)])
    threads = threads or available_cores()
    done = Done() if journaled is None else read_done(journaled.folder.path, journaled.prefix)
    sound = _sound_pieces(path, plan, done.checks, threads, progress) if done.checks and there else set()
    harmed = set(done.not_finite)
    with contextlib.ExitStack() as stack:
        journal = None
        pieces = _pieces(plan)
        if journaled is not None:
            if sound:
                journaled.announce(resumed_text(len(sound), len(pieces)))
            name = f"{journaled.prefix}{new_mark()}"
            journal = stack.enter_context(Journal(journaled.folder, name, [path], stream))
        left = [piece for piece in pieces if piece not in sound]
        _write_data(path, plan, left, threads, allow_nan, harmed, journal, progress, stream, importance)
    for name, data in protos.items():
        with explained(folder / name):
            (folder / name).write_bytes(data)
    return _written(plan, protos, harmed)


def check_written(
    graphs: Mapping[str, Graph],
    folder: Path,
    data_name: str,
    done: Done,
    *,
    threads: int | None = None,
    progress: Progress = silent,
) -> Written | None:
    """What ``write_onnx`` returned, if it has written all of these files; None if they are others."""
    plan, protos = plan_onnx(graphs, data_name)
    try:
        same = all((folder / name).read_bytes() == data for name, data in protos.items())
        if not same or (folder / data_name).stat().st_size != plan.nbytes:
            return None
        sound = _sound_pieces(folder / data_name, plan, done.checks, threads or available_cores(), progress)
    except OSError:
        return None
    return _written(plan, protos, done.not_finite) if len(sound) == len(_pieces(plan)) else None


def plan_onnx(graphs: Mapping[str, Graph], data_name: str) -> tuple[DataPlan, dict[str, bytes]]:
    """The file of weights, and the bytes of each graph's file."""
    plan = plan_data(list(graphs.values()))
    protos = {name: model_proto(graph, plan, data_name) for name, graph in graphs.items()}
    return plan, {name: proto.SerializeToString() for name, proto in protos.items()}


def _written(plan: DataPlan, protos: Mapping[str, bytes], harmed: Collection[str]) -> Written:
    names = tuple(weight.tensor.name for weight in plan.weights if weight.tensor.name in harmed)
    sizes = (*map(len, protos.values()), plan.nbytes)
    return Written(sizes, names, native.notes(weight.format for weight in plan.weights))


def _pieces(plan: DataPlan) -> list[Piece]:
    return cut([weight.tensor for weight in plan.weights])


def _places(plan: DataPlan, rows: Piece) -> list[tuple[int, int]]:
    """Offset and bytes of a piece in each part of its weight."""
    weight, places = plan.weights[rows.index], []
    for part in weight.parts:
        first, last = (part.nbytes * row // weight.tensor.rows for row in (rows.start, rows.stop))
        places.append((plan.offsets[part.name] + first, last - first))
    return places


def _sound_pieces(
    path: Path, plan: DataPlan, checks: Mapping[Piece, int], threads: int, progress: Progress
) -> set[Piece]:
    """The pieces whose bytes have the checksum a journal has of them."""
    handle = open_to_read(path)
    try:

        def places(rows: Piece) -> list[tuple[int, int, int]]:
            return [(handle, *place) for place in _places(plan, rows)]

        return with_checksums(_pieces(plan), checks, places, threads=threads, progress=progress)
    finally:
        os.close(handle)


def _write_data(
    path: Path,
    plan: DataPlan,
    pieces: Sequence[Piece],
    threads: int,
    allow_nan: bool,
    harmed: set[str],
    journal: Journal | None,
    progress: Progress,
    stream: Stream | None,
    importance: Importance | None,
) -> None:
    """Write these pieces; the file is made, or goes on as it is."""
    with explained(path):
        handle = open_to_write(path, make=True, follow=False)
    try:

        def write(rows: Piece, scratch: Scratch) -> int:
            weight = plan.weights[rows.index]
            tensor, check = weight.tensor, 0
            source = tensor.read(rows.start, rows.stop)
            encoder = encoder_of(tensor, [weight.format], importance)
            slab = encoder.encode(source, tensor.dtype, scratch, rows.start)
            if has_bad_weights(slab, tensor, rows, allow_nan=allow_nan):
                harmed.add(tensor.name)
            for (offset, _), data in zip(_places(plan, rows), _parts(weight, slab.data[0]), strict=True):
                view = data.data.cast("B")
                write_at(handle, view, offset)
                begin_to_sync(handle, view.nbytes, offset)
                check = zlib.crc32(view, check) if journal is not None else 0
            if journal is not None:
                journal.finished(rows, check, tensor.name if tensor.name in harmed else None)
            return source.nbytes

        with explained(path):
            os.truncate(handle, plan.nbytes)
            total = sum(source_bytes(plan.weights[piece.index].tensor, piece) for piece in pieces)
            work_through(
                pieces,
                write,
                threads=threads,
                stage="write",
                total=total,
                progress=progress,
                stream=stream,
                read=lambda rows: plan.weights[rows.index].tensor.read(rows.start, rows.stop),
            )
    finally:
        os.close(handle)


def _parts(weight: Weight, data: Array) -> tuple[Array, ...]:
    """The bytes of some rows, for each part of the weight."""
    if weight.format not in PACKED:
        return (data,)
    packed = pack(weight.format, data, weight.tensor.shape[-1])
    return packed.weights, packed.scales.astype(weight.parts[1].element.storage)


def model_proto(graph: Graph, plan: DataPlan, data_name: str = DATA_NAME) -> ModelProto:
    """The graph as onnx has it, its weights named as parts of the file ``data_name``."""
    parts = [part for weight in graph.weights.values() for part in weight.parts]
    proto = helper.make_graph(
        [_node(node) for node in graph.nodes],
        graph.name,
        [_value(each) for each in graph.inputs],
        [_value(each) for each in graph.outputs],
        value_info=[helper.make_tensor_value_info(name, int(graph.flow), None) for name in graph.foreign],
        initializer=[*_constants(graph), *(_external(part, plan, data_name) for part in parts)],
    )
    opsets = [helper.make_opsetid("", graph.flavour.opset)]
    if any(node.domain == MICROSOFT for node in graph.nodes):
        opsets.append(helper.make_opsetid(MICROSOFT, 1))
    return helper.make_model(
        proto,
        opset_imports=opsets,
        ir_version=graph.flavour.ir_version,
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
