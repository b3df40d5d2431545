"""Qwen2, Gemma 2 and 3, Qwen3-MoE in ONNX: llama.cpp and onnxruntime against transformers in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_material import llama_cpp_logits, nmse, transformers_logits
from onnx_causal_material import in_steps, run, session, write

from kconv.converters import to_gguf
from kconv.converters.samples.qwen_gemma import write_qwen2
from kconv.core.errors import UnsupportedModel
from kconv.core.tensor import DType

IDS = [int(i) for i in np.random.default_rng(7).integers(2, 1000, 160)]
ROUNDED_GELU = 1e-5  # llama.cpp's is the tanh form through a table of half floats

Writer = Callable[..., Path]
CASES: dict[str, tuple[Writer, dict[str, Any], float]] = {
    "qwen2": (write_qwen2, {}, 1e-9),
    "qwen2, untied, of transformers 5": (
        write_qwen2,
        {
            "tie_word_embeddings": False,
            "rope_theta": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
            "layer_types": ["full_attention"] * 3,
        },
        1e-9,
    ),
    "qwen2, a window no layer has": (
        write_qwen2,
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 3},
        1e-9,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    write_checkpoint, changes, bound = CASES[case]
    folder = write_checkpoint(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    expected = transformers_logits(folder, IDS)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    assert nmse(llama_cpp_logits(made.path, IDS), expected) < bound
    assert_onnx_equals(folder, tmp_path / "onnx", expected)


def assert_onnx_equals(folder: Path, place: Path, expected: Any) -> None:
    """At once, in steps of several sizes through the cache, and padded on the left."""
    model = session(write(folder, place))
    ids = np.array([IDS], np.int64)
    whole, _ = run(model, ids)
    assert nmse(whole[0], expected) < 1e-9
    np.testing.assert_allclose(whole[0], expected, atol=1e-4)
    np.testing.assert_allclose(in_steps(model, ids, 100, 1, 1, 30, 28)[0], expected, atol=1e-4)
    padded = np.concatenate([np.zeros((1, 5), np.int64), ids], axis=1)
    mask = (np.arange(padded.shape[1]) >= 5).astype(np.int64)[None]
    places = np.maximum(np.arange(padded.shape[1]) - 5, 0)[None]
    np.testing.assert_allclose(run(model, padded, mask=mask, positions=places)[0][0, 5:], expected, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
        {
            "use_sliding_window": True,
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ],
)
def test_a_window_of_qwen2_is_for_onnx_and_refused_for_llama_cpp(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_qwen2(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    with pytest.raises(UnsupportedModel, match="window of 24 tokens"):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    assert_onnx_equals(folder, tmp_path / "onnx", transformers_logits(folder, IDS))
