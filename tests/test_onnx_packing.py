"""q4_0 and q8_0 in onnxruntime's packing: the very weights libggml and gguf-py decode from the blocks."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quant_material import adversarial

from kconv.core.errors import UsageError
from kconv.quant import ggml
from kconv.quant.formats import BF16, F16, F32, FORMATS, Format
from kconv.quant.onnx_packing import (
    PACKED,
    gather_attributes,
    matmul_attributes,
    pack,
    packed_shapes,
    unpacked,
)

ROWS, COLUMNS = 48, 160
Floats = npt.NDArray[np.float32]
each_format = pytest.mark.parametrize("format", PACKED, ids=lambda format: format.name)


def encoded(format: Format, rows: Floats) -> npt.NDArray[np.uint8]:
    data = np.empty(format.tensor_bytes(rows.shape), np.uint8)
    ggml.encode(format, rows, data)
    return data


def decoded(format: Format, data: npt.NDArray[np.uint8]) -> Floats:
    """By gguf-py, and the same by libggml."""
    weights = gguf.quants.dequantize(
        data.reshape(ROWS, -1), gguf.GGMLQuantizationType(format.ggml_type)
    ).astype(np.float32)
    assert np.array_equal(weights, ggml.dequantize(format, data, (ROWS, COLUMNS)))
    return weights


def run(kind: str, values: Any, packed: tuple[Any, Any], attributes: dict[str, int]) -> Floats:
    """What onnxruntime makes of ``values`` with one operator and two initializers."""
    first = helper.np_dtype_to_tensor_dtype(values.dtype)
    inputs = ("values", "weights", "scales") if kind == "MatMulNBits" else ("weights", "values", "scales")
    node = helper.make_node(kind, inputs, ["result"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info("values", first, [None] * values.ndim)],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [None] * 2)],
        [numpy_helper.from_array(packed[0], "weights"), numpy_helper.from_array(packed[1], "scales")],
    )
    domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, ir_version=11, opset_imports=domains)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    (result,) = onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, {"values": values})
    return np.asarray(result, np.float32)


@each_format
def test_onnxruntime_has_the_weights_of_the_gguf(format: Format) -> None:
    data = encoded(format, adversarial(ROWS, COLUMNS, 1))
    right = decoded(format, data)
    packed = pack(format, data, COLUMNS)
    shapes = packed_shapes(format, (ROWS, COLUMNS))
    assert (packed.weights.shape, packed.scales.shape) == (shapes.weights, shapes.scales)
    assert np.array_equal(unpacked(format, packed), right)
    both = packed.weights, packed.scales
    attributes = matmul_attributes(format, (ROWS, COLUMNS))
    one = np.eye(COLUMNS, dtype=np.float32)  # times a unit vector a matrix is its weights, without rounding
    assert np.array_equal(run("MatMulNBits", one, both, attributes).T, right)
    for column in range(0, COLUMNS, 37):  # a single row takes another way through onnxruntime
        (result,) = run("MatMulNBits", one[column : column + 1], both, attributes)
        assert np.array_equal(result, right[:, column])
    ids = np.array([5, 0, 47, 5, 11, 23])
    table = packed.weights.reshape(shapes.table), packed.scales
    assert np.array_equal(run("GatherBlockQuantized", ids, table, gather_attributes(format)), right[ids])


@each_format
def test_accuracy_level_4_rounds_the_activations(format: Format) -> None:
    chance = np.random.default_rng(2)
    weights, values = (chance.standard_normal((rows, COLUMNS), np.float32) for rows in (ROWS, 7))
    data = encoded(format, weights)
    packed = pack(format, data, COLUMNS)
    right = values @ decoded(format, data).T
    error = {}
    for level in (0, 4):
        attributes = matmul_attributes(format, (ROWS, COLUMNS), level)
        result = run("MatMulNBits", values, (packed.weights, packed.scales), attributes)
        error[level] = float(np.abs(result - right).max() / right.std())
    assert error[0] < 2e-6 < error[4] < 5e-2


@each_format
def test_slabs_are_packed_as_the_whole(format: Format) -> None:
    data = encoded(format, adversarial(ROWS, COLUMNS, 3))
    whole = pack(format, data, COLUMNS)
    size = format.row_bytes(COLUMNS)
    parts = [pack(format, data[start * size : (start + 5) * size], COLUMNS) for start in range(0, ROWS, 5)]
    assert np.array_equal(np.concatenate([part.weights for part in parts]), whole.weights)
    assert np.array_equal(np.concatenate([part.scales for part in parts]), whole.scales)


def test_a_block_by_hand() -> None:
    """The scale is 0.5, element j the number j % 16: the bytes of q4_0 are 0x00, 0x11, …"""
    half = np.frombuffer(np.float16(0.5).tobytes(), np.uint8)
    four = np.concatenate([half, np.arange(16, dtype=np.uint8) * 0x11])
    packed = pack(FORMATS["q4_0"], four, 32)
    assert packed.weights.tobytes() == bytes.fromhex("1032547698badcfe" * 2)
    assert packed.scales.tolist() == [[0.5]]
    eight = np.concatenate(
        [half, np.array([0, 1, 127, -1, -128], np.int8).view(np.uint8), np.zeros(27, np.uint8)]
    )
    assert pack(FORMATS["q8_0"], eight, 32).weights[0, 0, :6].tolist() == [128, 129, 255, 127, 0, 128]


@pytest.mark.parametrize("format", [F32, F16, BF16, FORMATS["q6_K"], FORMATS["q4_1"]], ids=lambda f: f.name)
def test_formats_onnx_has_no_operator_for_are_refused(format: Format) -> None:
    with pytest.raises(UsageError, match=f"{format.display} is not available for ONNX, only Q4_0 and Q8_0"):
        matmul_attributes(format, (ROWS, COLUMNS))


def test_bytes_and_columns_that_are_no_blocks_are_refused() -> None:
    with pytest.raises(UsageError, match="row of 33 weights cannot be stored as Q4_0"):
        packed_shapes(FORMATS["q4_0"], (2, 33))
    with pytest.raises(UsageError, match="19 bytes are not a whole number of rows of 32 weights in Q4_0"):
        pack(FORMATS["q4_0"], np.zeros(19, np.uint8), 32)
