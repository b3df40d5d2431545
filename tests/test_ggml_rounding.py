"""How ggml-cpu rounds the inputs of its products, held against ggml-cpu itself."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import torch

from kconv.quant.formats import ENCODABLE, FORMATS
from kconv.reference.ggml_rounding import rounded, rounding_of

COLUMNS = 512


class _CpuTraits(ctypes.Structure):
    """struct ggml_type_traits_cpu of ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


@pytest.fixture(scope="module")
def ggml_cpu() -> Any:
    (path, *_) = (Path(llama_cpp.__file__).parent / "lib").glob("libggml-cpu.so")
    library = ctypes.CDLL(str(path))
    library.ggml_cpu_init()  # tables of half floats
    library.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_CpuTraits)
    return library


def inputs() -> np.ndarray[Any, np.dtype[np.float32]]:
    """Rows of very different size, some with outliers, zeros, ties and equal magnitudes of both signs."""
    random = np.random.default_rng(7)
    values = random.standard_normal((64, COLUMNS)).astype(np.float32)
    values *= np.exp(random.uniform(-12, 6, (64, 1))).astype(np.float32)
    values[3:9, ::97] *= 300
    values[10] = 0
    values[11, : COLUMNS // 2] = 0
    values[12] = np.round(values[12] * 4) / 4
    values[13, 0::2], values[13, 1::2] = 1.5, -1.5
    values[14] = (np.arange(COLUMNS) - 255.5) / 127
    return values


@pytest.mark.parametrize("format", [each.name for each in ENCODABLE])
def test_the_inputs_of_every_format_are_rounded_to_the_type_ggml_cpu_takes(
    format: str, ggml_cpu: Any
) -> None:
    number = ggml_cpu.ggml_get_type_traits_cpu(FORMATS[format].ggml_type).contents.vec_dot_type
    names = {each.ggml_type: name for name, each in FORMATS.items()}
    assert names[number] == {"none": "f32"}.get(str(rounding_of(format)), rounding_of(format))


def test_halves(ggml_cpu: Any) -> None:
    values = inputs()
    made = np.empty(values.shape, np.float16)
    ggml_cpu.ggml_cpu_fp32_to_fp16(_at(values), _at(made), ctypes.c_int64(values.size))
    assert np.array_equal(_rounded(values, "f16"), made.astype(np.float32))


def test_bfloat16(ggml_cpu: Any) -> None:
    values = inputs()
    made = np.empty(values.shape, np.uint16)
    ggml_cpu.ggml_cpu_fp32_to_bf16(_at(values), _at(made), ctypes.c_int64(values.size))
    assert np.array_equal(_rounded(values, "bf16"), (made.astype(np.uint32) << 16).view(np.float32))


def test_q8_0(ggml_cpu: Any) -> None:
    values = inputs()
    blocks = _blocks(ggml_cpu.quantize_row_q8_0, values, 32, 34)
    scales = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    expected = (scales * blocks[:, 2:].view(np.int8)).reshape(values.shape)
    assert np.array_equal(_rounded(values, "q8_0"), expected)


def test_q8_1_keeps_the_sum_of_a_block_as_a_half_of_its_own(ggml_cpu: Any) -> None:
    values = inputs()
    blocks = _blocks(ggml_cpu.quantize_row_q8_1, values, 32, 36)
    halves = blocks[:, :4].copy().view(np.float16).astype(np.float32)
    codes = blocks[:, 4:].view(np.int8).astype(np.float32)
    made, missing = rounded(torch.from_numpy(values), "q8_1")
    assert missing is not None
    assert np.array_equal(made.numpy(), (halves[:, :1] * codes).reshape(values.shape))
    sums = (made + missing).numpy().reshape(-1, 32).sum(1, dtype=np.float64)
    assert np.allclose(sums, halves[:, 1], rtol=1e-6, atol=1e-6 * np.abs(codes * halves[:, :1]).sum(1))


def test_q8_k(ggml_cpu: Any) -> None:
    values = inputs()
    blocks = _blocks(ggml_cpu.quantize_row_q8_K, values, 256, 292)
    scales = blocks[:, :4].copy().view(np.float32)
    expected = (scales * blocks[:, 4:260].view(np.int8)).reshape(values.shape)
    assert np.array_equal(_rounded(values, "q8_K"), expected)


def _rounded(values: Any, rounding: Any) -> Any:
    made, missing = rounded(torch.from_numpy(values), rounding)
    assert missing is None
    return made.numpy()


def _blocks(function: Any, values: Any, block: int, size: int) -> Any:
    out = np.empty((values.size // block, size), np.uint8)
    function(_at(values), _at(out), ctypes.c_int64(values.size))
    return out


def _at(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
