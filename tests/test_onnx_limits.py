"""Folders that run for ever, fill the memory or blow up: refused, or ended at a limit of kconv's own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import SparseTensorProto, StringStringEntryProto, TensorProto, helper
from onnx_material import write_llama_onnx

from kconv.cli.main import main
from kconv.converters.samples import write_sample
from kconv.core.errors import InputError
from kconv.runtimes import onnx_graph, onnx_limits, onnx_model_file
from kconv.runtimes.onnx_folder import open_onnx
from kconv.runtimes.onnx_limits import limits_of
from kconv.runtimes.onnx_process import OnnxProcess
from kconv.runtimes.onnx_wire import more_parts_than
from kconv.runtimes.reader import RuntimeFailure

Edit = Callable[[Any], object]
IDS = list(range(3, 30))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("limits") / "42dot")


@pytest.fixture(scope="module")
def folder(checkpoint: Path) -> Path:
    return write_llama_onnx(checkpoint, checkpoint.with_name("onnx"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def changed(folder: Path, edit: Edit) -> Path:
    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def before_logits(model: Any, *nodes: Any) -> None:
    """Nodes whose last output, a number, is added to the logits."""
    for node in model.graph.node:
        node.output[:] = ["earlier" if name == "logits" else name for name in node.output]
    model.graph.node.extend([*nodes, helper.make_node("Add", ["earlier", nodes[-1].output[0]], ["logits"])])


def number(value: float, kind: int = TensorProto.FLOAT, shape: list[int] | None = None) -> Any:
    """A node that makes a number, or a list of one."""
    tensor = helper.make_tensor("value", kind, shape or [], [value])
    return helper.make_node("Constant", [], [f"c{kind}_{value}_{len(shape or [])}"], value=tensor)


def endless(model: Any) -> None:
    """A Loop of 2^62 rounds."""
    rounds, yes, zero = number(2**62, TensorProto.INT64), number(1, TensorProto.BOOL), number(0.0)
    given = [
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("i", TensorProto.INT64), ("on", TensorProto.BOOL), ("x", TensorProto.FLOAT))
    ]
    made = [helper.make_tensor_value_info(n, k, []) for n, k in (("still", TensorProto.BOOL), ("y", 1))]
    turn = [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Identity", ["x"], ["y"])]
    names = [each.output[0] for each in (rounds, yes, zero)]
    loop = helper.make_node("Loop", names, ["late"], body=helper.make_graph(turn, "turn", given, made))
    before_logits(model, rounds, yes, zero, loop)


def filling(model: Any) -> None:
    """A tensor of 2^40 numbers, made of one."""
    shape = number(2**40, TensorProto.INT64, [1])
    many = helper.make_node("ConstantOfShape", shape.output, ["many"])
    before_logits(model, shape, many, helper.make_node("ReduceSum", ["many"], ["sum"], keepdims=0))


def growing(model: Any) -> None:
    """A tensor that is doubled 40 times while the graph runs."""
    start = helper.make_node("ReduceMax", ["earlier"], ["t0"], keepdims=0)
    nodes = [helper.make_node("Concat", [f"t{i}", f"t{i}"], [f"t{i + 1}"], axis=0) for i in range(1, 41)]
    one = number(1, TensorProto.INT64, [1])
    first = helper.make_node("Reshape", ["t0", one.output[0]], ["t1"])
    before_logits(model, start, one, first, *nodes, helper.make_node("ReduceMax", ["t41"], ["m"], keepdims=0))


def folding(model: Any) -> None:
    """200 products of matrices that onnxruntime works out while it loads: some seconds on any processor."""
    shape = helper.make_tensor("value", TensorProto.INT64, [2], [1024, 1024])
    start = helper.make_node("Constant", [], ["square"], value=shape)
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [1e-3])
    first = helper.make_node("ConstantOfShape", ["square"], ["m0"], value=value)
    products = [helper.make_node("MatMul", [f"m{i}", "m0"], [f"m{i + 1}"]) for i in range(200)]
    before_logits(
        model, start, first, *products, helper.make_node("ReduceMax", ["m200"], ["most"], keepdims=0)
    )


def small_limits(monkeypatch: pytest.MonkeyPatch, **changes: float) -> None:
    """Limits for tests that have no time; what a folder's size adds is left out."""
    small = {"_REQUEST": 0.3, "_TOKEN": 0.0, "_SLOW": 1e15, "_COMPUTED": 1 << 30, "_SCORES": 0}
    for name, value in {**small, **changes}.items():
        monkeypatch.setattr(onnx_limits, name, value)


def read(folder: Path) -> Any:
    with OnnxProcess(open_onnx(folder), threads=1) as process:
        process.begin()
        return process.read(IDS)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (endless, r"reading 27 tokens takes more than \d s of processor time, kconv's limit"),
        (filling, r"takes more than 1\.\d GiB of memory, kconv's limit for files of this size"),
        (growing, r"reading 27 tokens takes more than 1\.\d GiB of memory"),
    ],
)
def test_kconvs_own_limits_are_findings(
    edit: Edit, message: str, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_limits(monkeypatch, _REQUEST=0.3 if edit is endless else 100.0)
    with pytest.raises(RuntimeFailure, match=message):
        read(changed(copy, edit))


def test_loading_has_a_limit_of_its_own(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_limits(monkeypatch, _LOADING=0.1, _NODE=0.0, _SLOW_LOADING=1e15)
    process = OnnxProcess(open_onnx(changed(copy, folding)), threads=1)
    with pytest.raises(RuntimeFailure, match="loading the folder takes more"), process:
        pytest.fail("the folder has loaded")


def test_the_exit_code_is_that_of_a_finding(copy: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    small_limits(monkeypatch)
    assert main(["run", str(changed(copy, endless)), "-p", "hi"]) == 3
    printed = capfd.readouterr().err
    assert "kconv's limit for files of this size" in printed
    assert "Traceback" not in printed


def test_limits_are_far_beyond_what_is_needed(folder: Path) -> None:
    """Ten times the processor time a model of this size may take at worst is in them."""
    limits = limits_of(open_onnx(folder), 2)
    assert limits.loading > 20
    assert limits.request(1) > 5
    assert limits.request(1000) - limits.request(0) > 20
    assert limits.memory > 4 << 30


# --- what is counted before it is made ---


def function(name: str, *called: str) -> Any:
    nodes = [helper.make_node(each, ["x"], ["y"], domain="own" if each[0] == "F" else "") for each in called]
    return helper.make_function("own", name, ["x"], ["y"], nodes, [helper.make_opsetid("own", 1)])


def with_functions(*functions: Any, called: str = "F0") -> Edit:
    def edit(model: Any) -> None:
        model.functions.extend(functions)
        model.opset_import.append(helper.make_opsetid("own", 1))
        model.graph.node.append(helper.make_node(called, ["logits"], ["unused"], domain="own"))

    return edit


def in_a_branch(tensor: Any) -> Edit:
    branch = helper.make_graph([], "branch", [], [], [tensor])
    return lambda m: m.graph.node.append(helper.make_node("If", ["other.zero"], ["x"], then_branch=branch))


def wide(**more: Any) -> Any:
    return TensorProto(name="wide", data_type=1, **{"dims": [1] * 100_000, **more})


def sparse(model: Any) -> None:
    values = helper.make_tensor("s", 1, [1], [1.0])
    indices = helper.make_tensor("i", 7, [1], [0])
    model.graph.sparse_initializer.append(SparseTensorProto(values=values, indices=indices, dims=[1 << 40]))


def aliased(model: Any) -> None:
    external = [each for each in model.graph.initializer if each.external_data]
    largest = max(external, key=lambda each: int(each.external_data[2].value))
    for at in range(100):
        model.graph.initializer.add().CopyFrom(largest)
        model.graph.initializer[-1].name = f"again.{at}"


def external(**location: str) -> Any:
    return {
        "data_location": TensorProto.EXTERNAL,
        "external_data": [StringStringEntryProto(key=key, value=value) for key, value in location.items()],
    }


def wide_input(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 2**62
    model.graph.input[0].type.tensor_type.shape.dim.add().dim_value = 2


def blocks(model: Any) -> None:
    model.graph.node.append(helper.make_node("MatMulNBits", [], ["x"], domain="com.microsoft", N=-1, K=5))


BOMBS: dict[str, tuple[Edit, str]] = {
    "axes": (lambda m: m.graph.initializer.append(wide()), "'wide' have 100,000 axes, expected at most 8"),
    "axes in a branch": (in_a_branch(wide(dims=[2**62] * 100_000)), "100,000 axes"),
    "axes in a function": (
        with_functions(
            helper.make_function(
                "own", "F0", [], ["y"], [helper.make_node("Constant", [], ["y"], value=wide())], []
            )
        ),
        "100,000 axes",
    ),
    "numbers": (lambda m: m.graph.initializer.append(wide(dims=[2**62, 2])), "fewer than 2\\^63 numbers"),
    "numbers outside": (
        in_a_branch(wide(dims=[2**40] * 8, **external(location="model.onnx_data"))), "fewer than 2\\^63"
    ),
    "input": (wide_input, "values of 'input_ids' have the shape"),
    "blocks": (blocks, "have the shape"),
    "functions": (
        with_functions(*(function(f"F{i}", f"F{i + 1}", f"F{i + 1}") for i in range(25)), function("F25")),
        "more than 200,000 nodes with its functions expanded",
    ),
    "a function of itself": (with_functions(function("F0", "F0")), "'F0' that calls itself"),
    "functions of each other": (
        with_functions(function("F0", "F1"), function("F1", "Abs", "F2"), function("F2", "F0")),
        "calls itself",
    ),
    "sparse": (sparse, "sparse tensors"),
    "over one another": (aliased, "so they overlap"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_a_sentence(name: str, copy: Path, capfd: Any) -> None:
    edit, message = BOMBS[name]
    changed(copy, edit)
    with pytest.raises(InputError, match=message):
        open_onnx(copy)
    assert main(["inspect", str(copy)]) == 3


def test_functions_that_come_to_little_are_no_bomb(copy: Path) -> None:
    chain = [function(f"F{i}", "Abs", f"F{i + 1}") for i in range(2000)]
    edit = with_functions(function("First", "F0", "F0", "F1"), *chain, called="First")
    assert open_onnx(changed(copy, edit)).models[0].operators["own.First"] == 1


def test_nodes_are_counted_within_subgraphs(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_graph, "MOST_NODES", 500)
    assert open_onnx(copy)
    branch = helper.make_graph([helper.make_node("Abs", ["logits"], [""])] * 500, "branch", [], [])
    changed(copy, lambda m: m.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch)))
    with pytest.raises(InputError, match="more than 500 nodes"):
        open_onnx(copy)


def test_deep_nesting_is_refused(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(_nested(3000))
    with pytest.raises(InputError, match="is not an ONNX file"):
        open_onnx(copy)


def _field(number: int, content: bytes) -> bytes:
    size, head = len(content), bytes([number << 3 | 2])
    while size > 127:
        head, size = head + bytes([size & 127 | 128]), size >> 7
    return head + bytes([size]) + content


def _nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = _field(1, _field(5, _field(6, graph)))
    return _field(7, graph)


def test_millions_of_empty_messages_are_counted_before_they_are_parsed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_model_file, "_CROWD", 20_000)
    for number in (1, 5, 11):  # nodes, weights, inputs
        (copy / "model.onnx").write_bytes(_field(7, _field(number, b"") * 30_000))
        with pytest.raises(InputError, match="millions of parts"):
            open_onnx(copy)
    (copy / "model.onnx").write_bytes(_field(7, _field(1, _field(5, b"") * 30_000)))
    with pytest.raises(InputError, match="millions of parts"):
        open_onnx(copy)


def test_parts_are_counted_as_protobuf_has_them(folder: Path) -> None:
    data = (folder / "model.onnx").read_bytes()
    model = onnx.ModelProto.FromString(data)

    def fields(message: Any) -> int:
        count = 0
        for field, value in message.ListFields():
            packed = field.is_packed
            values = [value] if not field.is_repeated or packed else value
            count += len(values) + sum(fields(each) for each in values if field.message_type is not None)
        return count

    right = fields(model)
    assert right > 500
    assert not more_parts_than(data, onnx.ModelProto.DESCRIPTOR, right)
    assert more_parts_than(data, onnx.ModelProto.DESCRIPTOR, right - 1)
    for end in range(0, len(data), 997):
        more_parts_than(data[:end], onnx.ModelProto.DESCRIPTOR, 1 << 30)
