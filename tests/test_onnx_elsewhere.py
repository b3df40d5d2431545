"""ONNX folders made elsewhere: matrices found by their numbers, judged like those of kconv's own folders.

The graphs here have what exporters do: names that say nothing, transposed matrices, weights in the graph
itself, decoders joined into one. Real ones of optimum are tried by hand (docs/en/prove.md has the figures).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx_material import write_llama_onnx
from safetensors import safe_open

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample
from kconv.runtimes.onnx_folder import open_onnx
from kconv.runtimes.onnx_stored import stored_in
from kconv.verify import Proof, verify


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("checkpoint") / "42dot")


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_elsewhere(checkpoint, tmp_path_factory.mktemp("onnx") / "elsewhere")


def made_elsewhere(checkpoint: Path, target: Path) -> Path:
    """All weights in the graph's own file, matrices transposed and without their names."""
    made = write_llama_onnx(checkpoint, target)
    model = onnx.load_model(made / "model.onnx")
    (made / "model.onnx_data").unlink()
    onnx.save_model(model, made / "model.onnx")
    renamed(made / "model.onnx")
    return made


def renamed(path: Path, *, producer: str = "pytorch") -> None:
    """Matrices get numbers for names, as torch's exporter gives them; norms keep theirs."""
    model = onnx.load_model(path, load_external_data=False)
    model.producer_name = producer
    names = {
        each.name: f"onnx::MatMul_{number}" if len(each.dims) == 2 else each.name.removeprefix("other.")
        for number, each in enumerate(model.graph.initializer)
    }
    for each in model.graph.initializer:
        each.name = names[each.name]
    graphs = [model.graph]
    while graphs:
        for node in graphs.pop().node:
            node.input[:] = [names.get(name, name) for name in node.input]
            graphs += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    path.write_bytes(model.SerializeToString())


def proven(folder: Path, checkpoint: Path) -> Proof:
    return verify(folder, checkpoint, tokens=40, threads=1, ignore_manifest=True)


def test_a_good_folder_is_recomputed_from_its_own_weights(folder: Path, checkpoint: Path) -> None:
    proof = proven(folder, checkpoint)
    assert (proof.verdict, proof.right) == ("passed", "passed")
    assert {each.state for each in proof.weights.tensors} == {"identical"}
    assert len(proof.weights.tensors) == 30
    assert (proof.runtime.verdict, proof.runtime.positions, proof.runtime.matrices) == ("passed", 32, 23)
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11


def test_where_numbers_lie_in_a_graph_is_where_onnx_reads_them(folder: Path) -> None:
    (file,) = open_onnx(folder).models
    model = onnx.load_model(folder / "model.onnx")
    right = {each.name: each for each in model.graph.initializer if each.raw_data}
    data = file.path.read_bytes()
    found = stored_in(file)
    assert found.keys() == right.keys()
    for name, each in found.items():
        assert (each.shape, each.element) == (tuple(right[name].dims), right[name].data_type)
        assert each.offset is not None
        assert data[each.offset : each.offset + each.nbytes] == right[name].raw_data


def test_half_precision_throughout_has_a_limit_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    proof = proven(write_llama_onnx(checkpoint, tmp_path / "half", half=True), checkpoint)
    assert (proof.verdict, proof.runtime.verdict) == ("passed", "passed")
    largest = max(proof.runtime.worst, key=lambda each: each.nmse)
    assert 1e-9 < largest.nmse < 1e-5
    assert largest.limit == 1e-5


def products(graph: Any) -> list[Any]:
    stored = {each.name for each in graph.initializer}
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored]


def named_as_in_the_checkpoint(graph: Any, checkpoint: Path) -> list[str]:
    """Square matrices get their names back, and stay transposed."""
    names = []
    with safe_open(checkpoint / "model.safetensors", "np") as weights:
        right = {name: weights.get_tensor(name) for name in weights.keys() if "_proj." in name}  # noqa: SIM118
    for node in products(graph):
        stored = next(each for each in graph.initializer if each.name == node.input[1])
        values = numpy_helper.to_array(stored)
        for name, matrix in right.items():
            if matrix.shape == values.shape[::-1] == values.shape and np.array_equal(matrix.T, values):
                stored.name = node.input[1] = name
                names.append(name)
    return names


@pytest.mark.parametrize("turned_back", [False, True])
def test_a_square_matrix_of_its_name_may_be_transposed(
    turned_back: bool, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """Which way round it has to be the operators say, and the runtime part sees."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = onnx.load_model(copy / "model.onnx")
    names = named_as_in_the_checkpoint(model.graph, checkpoint)
    assert names
    if turned_back:
        stored = next(each for each in model.graph.initializer if each.name == names[0])
        values = np.ascontiguousarray(numpy_helper.to_array(stored).T)
        stored.CopyFrom(numpy_helper.from_array(values, names[0]))
    onnx.save_model(model, copy / "model.onnx")
    proof = proven(copy, checkpoint)
    verdict = "failed" if turned_back else "passed"
    assert (proof.right, proof.weights.verdict, proof.runtime.verdict) == (verdict, "passed", verdict)


def another_epsilon(graph: Any) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 10


def swapped_matrices(graph: Any) -> None:
    """Gate and up projection of the second layer in each other's place."""
    gate, up = products(graph)[11:13]
    gate.input[1], up.input[1] = up.input[1], gate.input[1]


def another_layers_cache(graph: Any) -> None:
    pasts = [f"past_key_values.{layer}.key" for layer in (0, 1)]
    other = dict(zip(pasts, pasts[::-1], strict=True))
    for node in graph.node:
        node.input[:] = [other.get(each, each) for each in node.input]


def no_rotation(graph: Any) -> None:
    rotation = next(node for node in graph.node if node.op_type == "RotaryEmbedding")
    for node in graph.node:
        node.input[:] = [rotation.input[0] if each == rotation.output[0] else each for each in node.input]


def a_norm_of_ones(graph: Any) -> None:
    """Which nothing finds by its numbers any more, nor by a name."""
    norm = next(each for each in graph.initializer if each.name.endswith("1.input_layernorm.weight"))
    for node in graph.node:
        node.input[:] = ["a norm" if each == norm.name else each for each in node.input]
    norm.CopyFrom(numpy_helper.from_array(np.ones(norm.dims, np.float32), "a norm"))


def a_scaled_matrix(graph: Any) -> None:
    name = products(graph)[9].input[1]
    matrix = next(each for each in graph.initializer if each.name == name)
    matrix.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(matrix) * np.float32(1.01), name))


@pytest.mark.parametrize(
    ("damage", "part"),
    [
        (another_epsilon, "runtime"),
        (swapped_matrices, "runtime"),
        (another_layers_cache, "runtime"),
        (no_rotation, "runtime"),
        (a_norm_of_ones, "runtime"),
        (a_scaled_matrix, "weights"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_damage_is_named_by_its_part(
    damage: Callable[[Any], None], part: str, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = onnx.load_model(copy / "model.onnx")
    damage(model.graph)
    onnx.save_model(model, copy / "model.onnx")
    proof = proven(copy, checkpoint)
    assert (proof.verdict, proof.right) == ("failed", "failed")
    assert [name for name in ("weights", "runtime") if proof.parts[name].verdict == "failed"] == [part]


# Blocks of whole numbers, as onnxruntime's tools make them: with zero points, and of other sizes


def in_blocks(path: Path, *, bits: int = 4, size: int = 32, level: int = 0, factor: float = 1) -> None:
    """The products of a graph by MatMulNBits, with the ends of each block as the ends of its numbers."""
    model = onnx.load_model(path)
    graph, names = model.graph, {each.name: each for each in model.graph.initializer}
    matrices = {node.input[1] for node in products(graph)}
    for node in products(graph):
        matrix = numpy_helper.to_array(names[node.input[1]]).T
        rows, columns = matrix.shape
        parts = matrix.reshape(rows, -1, size)
        least, most = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scales = ((most - least) / (2**bits - 1)).astype(np.float32)
        zeros = np.rint(-least / scales).astype(np.uint8)
        codes = np.clip(np.rint(parts / scales[..., None]) + zeros[..., None], 0, 2**bits - 1).astype(
            np.uint8
        )
        if bits == 4:
            codes = codes[..., ::2] | codes[..., 1::2] << 4
            zeros = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
            zeros = zeros[:, ::2] | zeros[:, 1::2] << 4
        given = {"Q": codes, "scales": scales * np.float32(factor), "zeros": zeros}
        for end, values in given.items():
            graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(values), f"{node.input[1]}_{end}")
            )
        inputs = [node.input[0], *(f"{node.input[1]}_{end}" for end in given)]
        how = {"K": columns, "N": rows, "bits": bits, "block_size": size, "accuracy_level": level}
        made = onnx.helper.make_node("MatMulNBits", inputs, list(node.output), domain="com.microsoft", **how)
        node.CopyFrom(made)
    rest = [each for each in graph.initializer if each.name not in matrices]
    del graph.initializer[:]
    graph.initializer.extend(rest)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save_model(model, path)


@pytest.mark.parametrize(
    ("bits", "size", "level"), [(4, 32, 0), (4, 128, 4), (8, 64, 4)], ids=lambda value: str(value)
)
def test_blocks_made_elsewhere_are_recomputed(
    bits: int, size: int, level: int, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    in_blocks(copy / "model.onnx", bits=bits, size=size, level=level)
    proof = proven(copy, checkpoint)
    assert (proof.right, proof.weights.verdict, proof.runtime.verdict) == ("passed", "passed", "passed")
    assert proof.runtime.matrices == 23
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11


def test_blocks_with_wrong_scales_are_wrong_weights(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    in_blocks(copy / "model.onnx", bits=8, factor=1.02)
    proof = proven(copy, checkpoint)
    assert (proof.right, proof.weights.verdict, proof.runtime.verdict) == ("failed", "failed", "passed")


def multiplied_in_whole_numbers(folder: Path, copy: Path, **how: Any) -> None:
    """As Transformers.js's model_quantized.onnx is made; inputs are rounded by the graph's own operators."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    kinds = ["MatMul", "Gather"]  # it takes the standard's Attention for onnxruntime's own
    quantization.quantize_dynamic(
        folder / "model.onnx", copy / "model.onnx", op_types_to_quantize=kinds, **how
    )


@pytest.mark.parametrize("per_channel", [False, True])
def test_inputs_rounded_by_the_graph_are_followed(
    per_channel: bool, folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """However much is lost: with one scale a matrix that is more than three times the gate of 8 bits."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    multiplied_in_whole_numbers(folder, copy, per_channel=per_channel)
    proof = proven(copy, checkpoint)
    assert (proof.type, proof.right) == ("q8_0", "passed")
    assert (proof.weights.verdict, proof.runtime.verdict) == ("passed", "passed")
    assert proof.runtime.matrices == 23
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11


def test_a_wrong_epsilon_is_found_among_whole_numbers(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    multiplied_in_whole_numbers(folder, copy)
    model = onnx.load_model(copy / "model.onnx")
    another_epsilon(model.graph)
    onnx.save_model(model, copy / "model.onnx")
    proof = proven(copy, checkpoint)
    assert (proof.right, proof.runtime.verdict, proof.weights.verdict) == ("failed", "failed", "passed")


def test_matrices_that_nodes_make_floats_of_are_known(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = onnx.load_model(copy / "model.onnx")
    name = products(model.graph)[0].input[1]
    matrix = next(each for each in model.graph.initializer if each.name == name)
    values = numpy_helper.to_array(matrix)
    scale = np.float32(np.abs(values).max() / 127)
    matrix.CopyFrom(numpy_helper.from_array(np.rint(values / scale).astype(np.int8), "whole"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(scale), "its scale"))
    node = onnx.helper.make_node("DequantizeLinear", ["whole", "its scale"], [name])
    model.graph.node.insert(0, node)
    onnx.save_model(model, copy / "model.onnx")
    proof = proven(copy, checkpoint)
    assert (proof.weights.verdict, proof.runtime.verdict) == ("passed", "passed")
    assert {each.format for each in proof.weights.tensors} == {"f32", "q8_0"}


def test_what_is_not_followed_is_not_compared_with_the_reason(tmp_path: Path) -> None:
    mixture = write_sample("qwen3-moe", tmp_path / "qwen3-moe")
    folder = to_onnx(mixture, tmp_path / "onnx", type="f32", verify=False, threads=1).path
    renamed(folder / "model.onnx")
    proof = proven(folder, mixture)
    assert proof.runtime.verdict == "not compared"
    assert "experts" in proof.runtime.findings[0].message


# Encoder-decoders: two decoders in one


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("kebyt5", tmp_path_factory.mktemp("checkpoint") / "kebyt5")


@pytest.mark.parametrize("own", [True, False], ids=["own", "elsewhere"])
def test_a_merged_decoder_is_recomputed_too(own: bool, encoder_decoder: Path, tmp_path: Path) -> None:
    folder = to_onnx(
        encoder_decoder, tmp_path / "merged", type="f32", layout="transformers.js", verify=False, threads=1
    ).path
    if not own:
        for path in (folder / "onnx").glob("*.onnx"):
            renamed(path)
    proof = proven(folder, encoder_decoder)
    assert (proof.verdict, proof.runtime.verdict) == ("passed", "passed")
    assert proof.runtime.matrices > 40
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11
