"""What people put ONNX files through takes kconv's: quantizers, converters to halves, optimizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_causal_material import Floats, run, session, write

from kconv.converters.onnx.flavours import FLAVOURS, STANDARD
from kconv.converters.onnx.graph import MICROSOFT, SIMPLIFIED
from kconv.converters.samples import write_sample

IDS = np.random.default_rng(0).integers(3, 200, (2, 20))
pytestmark = pytest.mark.parametrize("flavour", FLAVOURS)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A graph of each flavour, with Gemm that have a bias and some that have none."""
    place = tmp_path_factory.mktemp("tools")
    checkpoint = write_sample("qwen2", place / "checkpoint")
    return {name: write(checkpoint, place / name, flavour=each) for name, each in FLAVOURS.items()}


def loss(graph: Path, made: Path) -> float:
    """NMSE of the logits of what was made of a graph."""
    wanted = run(session(graph), IDS)[0]
    found = run(session(made), IDS)[0]
    return float(np.mean((wanted - found) ** 2) / np.mean(wanted**2))


def test_what_is_left_out_last_is_not_named(graphs: dict[str, Path], flavour: str) -> None:
    model = onnx.load_model(graphs[flavour], load_external_data=False)
    assert not [node.name for node in model.graph.node if node.input and not node.input[-1]]
    assert not [node.name for node in model.graph.node if not node.output[-1]]
    names = [name for node in model.graph.node for name in node.output if name]
    assert len(names) == len(set(names))


def test_onnx_checks_it_and_infers_types_throughout(
    graphs: dict[str, Path], flavour: str, tmp_path: Path
) -> None:
    if flavour == STANDARD.name:
        onnx.checker.check_model(str(graphs[flavour]), full_check=True)
    else:  # of all operators one is not known, and where it would be, onnxruntime does not know it
        with pytest.raises(onnx.checker.ValidationError, match="No Op registered for SimplifiedLayerNorm"):
            onnx.checker.check_model(str(graphs[flavour]))
        model = onnx.load(graphs[flavour])
        for node in model.graph.node:
            if node.op_type == SIMPLIFIED:
                node.domain = MICROSOFT
        onnx.save(model, tmp_path / "moved.onnx")
        onnx.checker.check_model(str(tmp_path / "moved.onnx"))
        with pytest.raises(Exception, match="not a registered function/op"):
            session(tmp_path / "moved.onnx")
    onnx.shape_inference.infer_shapes_path(
        str(graphs[flavour]), str(tmp_path / "inferred.onnx"), strict_mode=True
    )
    inferred = onnx.load_model(tmp_path / "inferred.onnx", load_external_data=False).graph
    typed = {each.name for each in (*inferred.value_info, *inferred.output)}
    assert {name for node in inferred.node for name in node.output if name} <= typed


def test_quantize_dynamic(graphs: dict[str, Path], flavour: str, tmp_path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    kinds = ["MatMul", "Gemm"]
    made = tmp_path / "dynamic.onnx"
    quantize_dynamic(graphs[flavour], made, weight_type=QuantType.QInt8, op_types_to_quantize=kinds)
    assert 0 < loss(graphs[flavour], made) < 0.05
    assert made.stat().st_size < 0.5 * graphs[flavour].with_name("model.onnx_data").stat().st_size


def test_convert_float_to_float16(graphs: dict[str, Path], flavour: str, tmp_path: Path) -> None:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    convert: Any = convert_float_to_float16
    onnx.save(convert(onnx.load(str(graphs[flavour])), keep_io_types=True), tmp_path / "halves.onnx")
    assert 0 < loss(graphs[flavour], tmp_path / "halves.onnx") < 1e-4


def test_the_transformers_optimizer(graphs: dict[str, Path], flavour: str, tmp_path: Path) -> None:
    from onnxruntime.transformers.optimizer import optimize_model

    optimized = optimize_model(str(graphs[flavour]), model_type="gpt2", num_heads=0, hidden_size=0)
    optimized.save_model_to_file(str(tmp_path / "optimized.onnx"))
    wanted: Floats = run(session(graphs[flavour]), IDS)[0]
    assert abs(run(session(tmp_path / "optimized.onnx"), IDS)[0] - wanted).max() < 1e-5
