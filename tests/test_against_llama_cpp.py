"""kconv's files against llama.cpp's own: its converter for float types, llama_model_quantize for the others.

Each side reads the same checkpoint; the files are compared with gguf-py's reader, byte for byte and key for
key. llama.cpp's converter is fetched by tools/fetch_llama_cpp.py; without a network these tests skip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_material import (
    FLOATS,
    VARIANTS,
    Gguf,
    Variant,
    checkpoints,
    conversions,
    read_with_gguf_py,
    run_quantizer,
)
from llama_material import llama_cpp_logits

from kconv.converters import to_gguf
from kconv.core.tensor import DType

QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
NAMES = [variant.name for variant in VARIANTS]
THREADED = ("gqa-bf16-sharded", "odd-rows")

# Keys only one side writes, or writes otherwise, and why.
ONLY_KCONV: Mapping[str, str] = {
    "tokenizer.ggml.unknown_token_id": "llama.cpp takes 0 by itself; ours says what the tokenizer says",
    "tokenizer.ggml.add_space_prefix": "llama.cpp takes true by itself; ours is always explicit",
}
ONLY_LLAMA_CPP: Mapping[str, str] = {
    "general.basename": "guessed from the folder's name, for display only",
    "general.finetune": "guessed from the folder's name, for display only",
}
DIFFERENT: Mapping[str, str] = {
    "general.name": "llama.cpp capitalizes the folder's name; ours is the name as it is",
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """llama.cpp's conversions, by variant and type."""
    return conversions(tmp_path_factory)


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Our conversions: a folder for every variant, all types from one read, pure ones in ``pure``."""
    root = tmp_path_factory.mktemp("kconv")
    for name, checkpoint in checkpoints(tmp_path_factory).items():
        to_gguf(checkpoint, root / name, types=(*FLOATS, *QUANTIZED), threads=1, verify=False)
        to_gguf(checkpoint, root / name / "pure", types=QUANTIZED, pure=True, threads=2, verify=False)
        if name in THREADED:
            to_gguf(checkpoint, root / name / "two", types=QUANTIZED, threads=2, verify=False)
    return {name: root / name for name in NAMES}


@pytest.fixture(scope="module")
def quantized(ours: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Any, ...], Path]:
    """llama_model_quantize's files, by variant, float type of its input, type and pure."""
    folder = tmp_path_factory.mktemp("quantized")
    targets = {
        (variant.name, source, type_, pure): folder / f"{variant.name}-{source}-{type_}-{pure}.gguf"
        for variant in VARIANTS
        for source in _exact_sources(variant)
        for type_ in QUANTIZED
        for pure in (False, True)
    }
    run_quantizer(
        [
            (_made(ours[name], source), path, type_.upper(), pure)
            for (name, source, type_, pure), path in targets.items()
        ]
    )
    return targets


def _exact_sources(variant: Variant) -> tuple[str, ...]:
    """Float types llama-quantize is proven from that hold the checkpoint's weights without loss."""
    return ("f32", "bf16") if variant.dtype is DType.BF16 else ("f32",)


def _made(folder: Path, type_: str) -> Path:
    (path,) = folder.glob(f"*-{type_.upper()}.gguf")
    return path


def _assert_same_tensors(ours_read: Gguf, expected: Gguf) -> None:
    assert sorted(ours_read.tensors) == sorted(expected.tensors)
    different = [name for name in expected.tensors if ours_read.tensors[name] != expected.tensors[name]]
    described = [(name, ours_read.tensors[name][:2], expected.tensors[name][:2]) for name in different]
    assert not described, "tensors whose type, shape or bytes differ (ours, llama.cpp's)"


@pytest.mark.parametrize("type_", FLOATS)
@pytest.mark.parametrize("name", NAMES)
def test_float_types_equal_the_converter(
    name: str, type_: str, ours: dict[str, Path], converted: dict[tuple[str, str], Path]
) -> None:
    ours_read = read_with_gguf_py(_made(ours[name], type_))
    expected = read_with_gguf_py(converted[name, type_])
    _assert_same_tensors(ours_read, expected)
    _assert_same_keys(ours_read.keys, expected.keys)


def _assert_same_keys(actual: Mapping[str, tuple[str, Any]], expected: Mapping[str, tuple[str, Any]]) -> None:
    assert sorted(set(actual) - set(expected) - set(ONLY_KCONV)) == []
    assert sorted(set(expected) - set(actual) - set(ONLY_LLAMA_CPP)) == []
    for key in expected.keys() & actual.keys() - DIFFERENT.keys():
        (kind, value), (expected_kind, expected_value) = actual[key], expected[key]
        assert kind == expected_kind, key
        if isinstance(value, float):
            assert math.isclose(value, expected_value, rel_tol=1e-7), key
        else:
            assert value == expected_value, key


@pytest.mark.parametrize("pure", [False, True], ids=["recipe", "pure"])
@pytest.mark.parametrize("type_", QUANTIZED)
@pytest.mark.parametrize("variant", VARIANTS, ids=NAMES)
def test_quantized_types_equal_llama_quantize(
    variant: Variant, type_: str, pure: bool, ours: dict[str, Path], quantized: dict[tuple[Any, ...], Path]
) -> None:
    ours_read = read_with_gguf_py(_made(ours[variant.name] / "pure" if pure else ours[variant.name], type_))
    for source in _exact_sources(variant):
        expected = read_with_gguf_py(quantized[variant.name, source, type_, pure])
        _assert_same_tensors(ours_read, expected)
        for key in ("general.file_type", "general.quantization_version"):
            assert ours_read.keys[key] == expected.keys[key]
        assert sorted(ours_read.keys) == sorted(expected.keys)


@pytest.mark.parametrize("name", THREADED)
def test_threads_change_nothing(name: str, ours: dict[str, Path]) -> None:
    for type_ in QUANTIZED:
        assert _made(ours[name], type_).read_bytes() == _made(ours[name] / "two", type_).read_bytes(), type_


def test_llama_cpp_loads_and_runs_every_variant(ours: dict[str, Path]) -> None:
    for name, folder in ours.items():
        logits = llama_cpp_logits(_made(folder, "q8_0"), list(range(1, 40)))
        assert np.isfinite(logits).all(), name
        assert logits.std() > 0.1, name
