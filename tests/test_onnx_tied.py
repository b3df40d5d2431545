"""Tied tables that quantizers of onnxruntime made two matrices of: the proof computes with each as it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file
from t5_checkpoints import write_t5
from test_onnx_elsewhere import another_epsilon, in_blocks, made_elsewhere, proven, renamed

from kconv.converters import to_onnx
from kconv.converters.samples import write_sample
from kconv.verify import Proof

WIDE = {"op_types_to_quantize": ["MatMul", "Gather"]}  # it takes the standard's Attention for its own


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose head is its embedding."""
    made = write_sample("42dot", tmp_path_factory.mktemp("checkpoint") / "tied")
    weights = load_file(made / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, made / "model.safetensors", {"format": "pt"})
    config = json.loads((made / "config.json").read_text("utf-8"))
    (made / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}), "utf-8")
    return made


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The head is written out, transposed, as exporters do."""
    return made_elsewhere(checkpoint, tmp_path_factory.mktemp("onnx") / "elsewhere")


def in_4_bits(source: Path, target: Path) -> None:
    """All that is multiplied by, as onnxruntime's MatMulNBitsQuantizer; what is looked up stays float32."""
    target.write_bytes(source.read_bytes())
    in_blocks(target)


def in_whole_numbers(source: Path, target: Path) -> None:
    """All that is multiplied by, in int8 by onnxruntime's quantize_dynamic."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_dynamic(source, target, op_types_to_quantize=["MatMul"])


def table_in_whole_numbers(source: Path, target: Path) -> None:
    """What is looked up alone."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    quantization.quantize_dynamic(source, target, op_types_to_quantize=["Gather"])


QUANTIZERS = (in_4_bits, in_whole_numbers, table_in_whole_numbers)


@pytest.mark.parametrize("quantize", QUANTIZERS, ids=lambda each: each.__name__)
def test_table_and_head_in_two_ways_are_recomputed(
    quantize: Callable[[Path, Path], None], folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    quantize(folder / "model.onnx", copy / "model.onnx")
    proof = proven(copy, checkpoint)
    assert passed(proof)
    assert proof.runtime.matrices == 23
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11


def passed(proof: Proof) -> bool:
    return (proof.right, proof.weights.verdict, proof.runtime.verdict) == ("passed", "passed", "passed")


def test_a_head_of_other_numbers_is_wrong(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    """In 4 bits and of the right embedding's size, but with rows in another order."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = onnx.load_model(copy / "model.onnx")
    name = model.graph.node[-1].input[1]
    head = next(each for each in model.graph.initializer if each.name == name)
    turned = np.ascontiguousarray(numpy_helper.to_array(head)[:, ::-1])
    head.CopyFrom(numpy_helper.from_array(turned, name))
    onnx.save_model(model, copy / "model.onnx")
    in_blocks(copy / "model.onnx")
    assert proven(copy, checkpoint).right == "failed"


def test_a_wrong_epsilon_is_found_beside_a_head_in_4_bits(
    folder: Path, checkpoint: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    in_4_bits(folder / "model.onnx", copy / "model.onnx")
    model = onnx.load_model(copy / "model.onnx")
    another_epsilon(model.graph)
    onnx.save_model(model, copy / "model.onnx")
    proof = proven(copy, checkpoint)
    assert (proof.right, proof.runtime.verdict, proof.weights.verdict) == ("failed", "failed", "passed")


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    return write_t5(folder / "t5", head=False, feed_forward_proj="relu", tie_word_embeddings=True)


@pytest.mark.parametrize("which", ["encoder", "decoder", ""], ids=["encoder", "decoder", "both"])
def test_tables_of_encoder_and_decoder_may_differ(which: str, encoder_decoder: Path, tmp_path: Path) -> None:
    """As where one of the files is quantized: the table both stacks share is float32 in the other."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    made = to_onnx(encoder_decoder, tmp_path / "t5", type="f32", verify=False, threads=1).path
    for path in sorted(made.glob("*.onnx")):
        renamed(path)
        if path.name.startswith(which):
            whole = tmp_path / path.name
            quantization.quantize_dynamic(path, whole, **WIDE)
            shutil.move(whole, path)
    proof = proven(made, encoder_decoder)
    assert passed(proof)
    assert max(each.nmse for each in proof.runtime.worst) < 1e-11
