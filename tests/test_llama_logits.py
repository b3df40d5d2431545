"""Every feature of the Llama recipe, proven by logits: transformers in fp32 against llama.cpp on our file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_material import llama_cpp_logits, nmse, random_llama, transformers_logits

from kconv.converters import to_gguf

IDS = [int(i) for i in np.random.default_rng(7).integers(2, 320, 200)]

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped queries": {"num_attention_heads": 8, "num_key_value_heads": 2},
    "head_dim of its own": {"head_dim": 32},
    "tied head": {"tie_word_embeddings": True},
    "attention biases": {"attention_bias": True, "num_key_value_heads": 2},
    "mlp biases": {"mlp_bias": True},
    "rope base": {"rope_theta": 500000.0},
    "epsilon": {"rms_norm_eps": 0.1},
    "linear rope scaling": {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "llama 3 rope scaling": {"rope_scaling": LLAMA3_ROPE, "rope_theta": 50000.0},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_logits_equal_transformers(feature: str, tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "checkpoint", small_tokenizer, **FEATURES[feature])
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    expected = transformers_logits(folder, IDS)
    logits = llama_cpp_logits(made.path, IDS)
    # llama.cpp's only approximation here is the order of sums; one head permuted wrongly gives 0.01 and more.
    assert nmse(logits, expected) < 1e-9
    assert (logits.argmax(1) == expected.argmax(1)).all()


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 1e-5), ("bfloat16", 1e-5)])
def test_half_precision_checkpoints(dtype: str, bound: float, tmp_path: Path, small_tokenizer: Path) -> None:
    folder = random_llama(tmp_path / "checkpoint", small_tokenizer, dtype)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    assert made.type == {"float16": "f16", "bfloat16": "bf16"}[dtype]
    (exact,) = to_gguf(folder, tmp_path / "exact.gguf", types=["f32"], verify=False).outputs
    expected = transformers_logits(folder, IDS)
    assert nmse(llama_cpp_logits(exact.path, IDS), expected) < 1e-9
    assert nmse(llama_cpp_logits(made.path, IDS), expected) < bound * 100
