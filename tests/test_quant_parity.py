"""Formats and bytes equal those of llama_model_quantize."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from quant_material import as_model, llama_quantize, llama_tensors, read_tensors, write_llama

from kconv.core.model import Model
from kconv.core.tensor import DType, Tensor
from kconv.quant.formats import Format
from kconv.quant.policy import choose_formats, parse_policy, quantization_metadata
from kconv.quant.slabs import Scratch, convert_slab

QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")

SHAPES: dict[str, dict[str, Any]] = {
    "blocks of 256 fit": {"hidden": 256, "feed_forward": 512, "vocabulary": 300},
    "tied head": {"hidden": 256, "feed_forward": 512, "vocabulary": 300, "tied": True},
    "output falls back to q8_0": {"hidden": 160, "feed_forward": 352, "vocabulary": 301, "kv_heads": 1},
    "tied head falls back": {"hidden": 288, "feed_forward": 320, "vocabulary": 77, "tied": True},
    "ffn_down falls back to f16": {"hidden": 256, "feed_forward": 328, "vocabulary": 300},
    "all falls back to f16": {"hidden": 72, "feed_forward": 40, "vocabulary": 99, "kv_heads": 4},
    "eight experts": {"hidden": 256, "feed_forward": 96, "vocabulary": 64, "experts": 8},
    "four experts": {"hidden": 256, "feed_forward": 96, "vocabulary": 64, "experts": 4},
}


def encoded(tensor: Tensor, format: Format, *, step: int, threads: int) -> bytes:
    """The whole tensor, cut into slabs of ``step`` rows."""

    def slab(start: int) -> bytes:
        rows = tensor.read(start, min(start + step, tensor.rows))
        return convert_slab(rows, tensor.dtype, [format], Scratch()).data[0].tobytes()

    with ThreadPoolExecutor(threads) as pool:
        return b"".join(pool.map(slab, range(0, tensor.rows, step)))


def assert_equal(model: Model, name: str, path: Path, *, pure: bool, step: int, threads: int) -> None:
    choice = choose_formats(model, parse_policy(name, pure=pure))
    expected = read_tensors(path)
    assert {tensor: format.ggml_type for tensor, format in choice.formats.items()} == {
        tensor: ggml_type for tensor, (ggml_type, _) in expected.items()
    }
    for tensor in model.tensors:
        made = encoded(tensor, choice[tensor.name], step=step, threads=threads)
        assert made == expected[tensor.name][1], (tensor.name, choice[tensor.name].name)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path, Path]]:
    """Every shape's tensors, its F32 file and its BF16 file."""
    folder = tmp_path_factory.mktemp("quant")
    made = {}
    for number, (shape, arguments) in enumerate(SHAPES.items()):
        tensors = llama_tensors(**arguments)
        experts = arguments.get("experts", 0)
        paths = folder / f"{number}-f32.gguf", folder / f"{number}-bf16.gguf"
        write_llama(paths[0], tensors, experts=experts)
        write_llama(paths[1], tensors, bf16=True, experts=experts)
        made[shape] = (tensors, *paths)
    return made


@pytest.mark.parametrize("pure", [False, True], ids=["recipe", "pure"])
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_llama_quantize(sources: Any, tmp_path: Path, shape: str, name: str, pure: bool) -> None:
    tensors, f32, bf16 = sources[shape]
    experts = SHAPES[shape].get("experts", 0)
    file_type = parse_policy(name).file_type
    target = tmp_path / "theirs.gguf"
    assert llama_quantize(f32, target, file_type, pure=pure, threads=1)
    assert_equal(as_model(tensors, experts=experts), name, target, pure=pure, step=10**6, threads=1)
    assert llama_quantize(bf16, target, file_type, pure=pure, threads=2)
    model = as_model(tensors, DType.BF16, experts=experts)
    assert_equal(model, name, target, pure=pure, step=7, threads=2)


def test_equals_llama_quantize_beyond_bf16(tmp_path: Path) -> None:
    """Weights that need all of float32, and half floats."""
    generator = np.random.default_rng(1)
    tensors = llama_tensors(hidden=256, feed_forward=512, vocabulary=300)
    for name, array in tensors.items():
        array += generator.standard_normal(array.shape, np.float32) * np.float32(1e-3)
        tensors[name] = array.astype(np.float16).astype(np.float32) if "attn" in name else array
    source, target = tmp_path / "f32.gguf", tmp_path / "theirs.gguf"
    write_llama(source, tensors)
    halves = {name: array for name, array in tensors.items() if "attn" in name}
    for name in QUANTIZED:
        assert llama_quantize(source, target, parse_policy(name).file_type, threads=2)
        assert_equal(as_model(tensors), name, target, pure=False, step=32, threads=2)
        theirs, choice = read_tensors(target), choose_formats(as_model(halves), parse_policy(name))
        for tensor in as_model(halves, DType.F16).tensors:
            made = encoded(tensor, choice[tensor.name], step=100, threads=1)
            assert made == theirs[tensor.name][1], tensor.name


@pytest.mark.parametrize("name", QUANTIZED)
def test_refuses_what_llama_quantize_refuses(tmp_path: Path, name: str) -> None:
    """Finite weights whose block scales, or themselves as half floats, are beyond 65504."""
    policy = parse_policy(name, pure=True)
    divisor = {"q8_0": 127, "q4_0": 8, "q4_1": 1, "q5_0": 16, "q5_1": 1}[name]
    for columns, limit in ((256, 65520.0 * divisor), (40, 65520.0)):
        for factor in (0.999, 1.001):
            tensors = llama_tensors(hidden=256, feed_forward=columns, vocabulary=32)
            tensors["blk.1.ffn_down.weight"][200, 17] = -limit * factor
            source, target = tmp_path / "f32.gguf", tmp_path / "theirs.gguf"
            write_llama(source, tensors)
            model = as_model(tensors)
            choice = choose_formats(model, policy)
            overflowed = [
                tensor.name
                for tensor in model.tensors
                if convert_slab(
                    tensor.read(0, tensor.rows), tensor.dtype, [choice[tensor.name]], Scratch()
                ).overflowed
            ]
            fine = llama_quantize(source, target, policy.file_type, pure=True)
            assert fine == (factor < 1) == (not overflowed), (columns, factor)
            assert overflowed == ([] if fine else ["blk.1.ffn_down.weight"])


def test_metadata_is_what_llama_quantize_writes(sources: Any, tmp_path: Path) -> None:
    _, f32, _ = sources["tied head"]
    target = tmp_path / "theirs.gguf"
    for name in QUANTIZED:
        assert llama_quantize(f32, target, parse_policy(name).file_type)
        fields = gguf.GGUFReader(target).fields
        for key, value in quantization_metadata(parse_policy(name)).items():
            assert fields[key].contents() == value
            assert fields[key].types == [gguf.GGUFValueType.UINT32]
