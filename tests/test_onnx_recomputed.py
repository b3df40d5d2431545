"""The runtime part of an ONNX folder: good ones are far below the limit, a wrong graph fails by it alone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample
from kconv.verify import Proof, verify

KINDS = (("f32", 4), ("f16", 4), ("q8_0", 0), ("q8_0", 4), ("q4_0", 4))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("checkpoint") / "42dot")


@pytest.fixture(scope="module")
def folders(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Path]:
    """A folder of each type and accuracy level."""
    place = tmp_path_factory.mktemp("folders")
    return {
        (type_, level): to_onnx(
            checkpoint, place / f"{type_}-{level}", type=type_, accuracy_level=level, verify=False, threads=1
        ).path
        for type_, level in KINDS
    }


def proven(folder: Path, checkpoint: Path, **options: Any) -> Proof:
    return verify(folder, checkpoint, tokens=40, threads=1, ignore_manifest=True, **options)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_good_folders_are_far_below_the_limit(
    kind: tuple[str, int], folders: dict[tuple[str, int], Path], checkpoint: Path
) -> None:
    proof = proven(folders[kind], checkpoint)
    assert (proof.verdict, proof.right) == ("passed", "passed")
    assert (proof.runtime.positions, proof.runtime.matrices) == (32, 23)
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11


def test_a_loss_fails_only_above_a_limit_given(
    folders: dict[tuple[str, int], Path], checkpoint: Path
) -> None:
    folder = folders["q4_0", 4]
    assert proven(folder, checkpoint).logits.gate is not None
    assert proven(folder, checkpoint).logits.gate.fails is None  # type: ignore[union-attr]
    proof = proven(folder, checkpoint, max_kl=1e-4)
    assert (proof.verdict, proof.right) == ("failed", "passed")


def nodes(graph: Any, kind: str) -> list[Any]:
    return [node for node in graph.node if node.op_type == kind]


def another_epsilon(graph: Any) -> None:
    for node in nodes(graph, "RMSNormalization"):
        for attribute in node.attribute:
            if attribute.name == "epsilon":
                attribute.f *= 10


def a_norm_left_out(graph: Any) -> None:
    norm = nodes(graph, "RMSNormalization")[2]
    for node in graph.node:
        node.input[:] = [norm.input[0] if each == norm.output[0] else each for each in node.input]


def swapped_matrices(graph: Any) -> None:
    """Gate and up projection of a layer in each other's place."""
    products = nodes(graph, "MatMulNBits") or nodes(graph, "Gemm")
    gate, up = (
        next(node for node in products if f"layers.1.mlp.{name}_proj" in node.input[1])
        for name in ("gate", "up")
    )
    for place in range(1, len(gate.input)):
        gate.input[place], up.input[place] = up.input[place], gate.input[place]


def another_norm(graph: Any) -> None:
    one, other = nodes(graph, "RMSNormalization")[:2]
    one.input[1], other.input[1] = other.input[1], one.input[1]


def no_rotation(graph: Any) -> None:
    rotation = nodes(graph, "RotaryEmbedding")[1]
    for node in graph.node:
        node.input[:] = [rotation.input[0] if each == rotation.output[0] else each for each in node.input]


def another_layers_cache(graph: Any) -> None:
    """Right where a text is read at once."""
    pasts = {
        "past_key_values.0.key": "past_key_values.1.key",
        "past_key_values.1.key": "past_key_values.0.key",
    }
    for node in graph.node:
        node.input[:] = [pasts.get(each, each) for each in node.input]


DAMAGES: tuple[Callable[[Any], None], ...] = (
    another_epsilon,
    a_norm_left_out,
    swapped_matrices,
    another_norm,
    no_rotation,
    another_layers_cache,
)


@pytest.mark.parametrize("kind", [("f32", 4), ("f16", 4), ("q4_0", 4)], ids=str)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_graph_fails_by_the_runtime_part(
    damage: Callable[[Any], None],
    kind: tuple[str, int],
    folders: dict[tuple[str, int], Path],
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    folder = shutil.copytree(folders[kind], tmp_path / "copy")
    path = folder / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    damage(model.graph)
    path.write_bytes(model.SerializeToString())
    proof = proven(folder, checkpoint)
    assert proof.right == "failed"
    assert proof.runtime.verdict == "failed"
    assert "onnxruntime does not compute" in proof.runtime.findings[0].message
    assert proof.weights.verdict == "passed"


# Mixtures of experts


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("qwen3-moe", tmp_path_factory.mktemp("mixture") / "qwen3-moe")


def router_weights_as_they_are(graph: Any) -> None:
    """What the chosen experts make is weighted by their probabilities, which do not add to 1."""
    sums = {node.output[0] for node in nodes(graph, "ReduceSum")}
    division = next(node for node in nodes(graph, "Div") if node.input[1] in sums)
    for node in graph.node:
        node.input[:] = [division.input[0] if each == division.output[0] else each for each in node.input]


def another_experts_matrix(graph: Any) -> None:
    one, other = (
        next(
            node for node in nodes(graph, "Gemm") if f"layers.1.mlp.experts.{expert}.up_proj" in node.input[1]
        )
        for expert in (0, 1)
    )
    one.input[1], other.input[1] = other.input[1], one.input[1]


@pytest.mark.parametrize("type_", ["f32", "q4_0"])
def test_experts_are_recomputed_too(type_: str, mixture: Path, tmp_path: Path) -> None:
    folder = to_onnx(mixture, tmp_path / type_, type=type_, verify=False, threads=1).path
    proof = proven(folder, mixture)
    assert (proof.verdict, proof.right, proof.runtime.verdict) == ("passed", "passed", "passed")
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11
    assert proof.runtime.positions == 32


@pytest.mark.parametrize("damage", [router_weights_as_they_are, another_experts_matrix])
def test_a_wrong_graph_of_experts_fails(damage: Callable[[Any], None], mixture: Path, tmp_path: Path) -> None:
    folder = to_onnx(mixture, tmp_path / "f32", type="f32", verify=False, threads=1).path
    path = folder / "model.onnx"
    model = onnx.load_model(path, load_external_data=False)
    damage(model.graph)
    path.write_bytes(model.SerializeToString())
    proof = proven(folder, mixture)
    assert (proof.right, proof.runtime.verdict, proof.weights.verdict) == ("failed", "failed", "passed")
