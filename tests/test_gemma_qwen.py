"""Qwen2, Gemma 2 and 3, Qwen3-MoE in ONNX: llama.cpp and onnxruntime against transformers in fp32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_material import llama_cpp_logits, nmse, transformers_logits
from onnx_causal_material import described, in_steps, run, session, write

from kconv.converters import to_gguf
from kconv.converters.samples.decoders import write_qwen3_moe
from kconv.converters.samples.qwen_gemma import write_gemma2, write_gemma3, write_qwen2
from kconv.core.errors import InputError, UnsupportedModel
from kconv.core.tensor import DType
from kconv.flows.to_onnx import to_onnx

IDS = [int(i) for i in np.random.default_rng(7).integers(2, 1000, 160)]
ROUNDED_GELU = 1e-5  # llama.cpp's is the tanh form through a table of half floats

TINY = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 96}

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
    "gemma2": (write_gemma2, {}, ROUNDED_GELU),
    "gemma2, all layers local, low caps": (
        write_gemma2,
        {
            "layer_types": ["sliding_attention"] * 3,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
        ROUNDED_GELU,
    ),
    "gemma2, of transformers 5, positions scaled": (
        write_gemma2,
        {
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "rope_theta": None,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0},
        },
        ROUNDED_GELU,
    ),
    "gemma2, by the layers of the 27B": (
        write_gemma2,
        {**TINY, "num_hidden_layers": 46, "head_dim": 32, "query_pre_attn_scalar": 16},
        ROUNDED_GELU,
    ),
    "gemma3": (write_gemma3, {}, ROUNDED_GELU),
    "gemma3, no scaling, the usual pattern": (
        write_gemma3,
        {"rope_scaling": None, "sliding_window_pattern": 6, "num_hidden_layers": 7},
        ROUNDED_GELU,
    ),
    "gemma3 of transformers 5, untied": (
        write_gemma3,
        {
            "tie_word_embeddings": False,
            "rope_theta": None,
            "rope_scaling": None,
            "rope_local_base_freq": None,
            "layer_types": ["full_attention", "sliding_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 50000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        ROUNDED_GELU,
    ),
    "gemma3, no local layer, capped logits": (
        write_gemma3,
        {"layer_types": ["full_attention"] * 4, "final_logit_softcapping": 2.0},
        ROUNDED_GELU,
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


@pytest.mark.parametrize(
    ("write_checkpoint", "changes", "message"),
    [
        (write_gemma2, {"attn_logit_softcapping": None}, "attn_logit_softcapping is null"),
        (write_gemma2, {"final_logit_softcapping": None}, "final_logit_softcapping is null"),
        (write_gemma2, {"query_pre_attn_scalar": 48}, "query_pre_attn_scalar is 48"),
        (write_gemma2, {"layer_types": ["full_attention"] * 3}, "no layer has a sliding window"),
        (write_gemma3, {"query_pre_attn_scalar": 48}, "query_pre_attn_scalar is 48"),
        (write_gemma3, {"hidden_activation": "silu"}, "hidden_activation is 'silu'"),
        (
            write_gemma3,
            {
                "rope_scaling": None,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default", "rope_theta": 50000.0},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
                },
            },
            "'linear' in local layers",
        ),
    ],
)
def test_what_llama_cpps_graphs_of_gemma_lack_is_for_onnx(
    write_checkpoint: Writer, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    with pytest.raises(UnsupportedModel, match=message):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    assert_onnx_equals(folder, tmp_path / "onnx", transformers_logits(folder, IDS))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_bidirectional_attention": True}, "attention to what follows"),
        ({"attention_bias": True}, "biases of attention"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor"),
        ({"layer_types": ["full_attention"]}, "4 times sliding_attention or full_attention"),
    ],
)
def test_what_no_gemma_has_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = write_gemma3(tmp_path / "checkpoint", **changes)
    with pytest.raises(InputError, match=message):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)


def test_gemma2_with_an_output_matrix_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = write_gemma2(tmp_path / "checkpoint", tie_word_embeddings=False)
    with pytest.raises(UnsupportedModel, match="not the embedding"):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_experts": 4, "num_experts_per_tok": 4}, {"num_experts_per_tok": 1}, {"norm_topk_prob": False}],
)
def test_experts_in_onnx(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = write_qwen3_moe(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    assert_onnx_equals(folder, tmp_path / "onnx", transformers_logits(folder, IDS))


def test_experts_in_onnx_in_standard_operators(tmp_path: Path) -> None:
    graph = described(write_qwen3_moe(tmp_path / "checkpoint"))
    assert {node.domain for node in graph.nodes} == {""}
    assert sum("experts" in name for name in graph.weights) == 3 * 8 * 3


def test_experts_in_onnx_are_proven_quantized(tmp_path: Path) -> None:
    folder = write_qwen3_moe(tmp_path / "checkpoint")
    done = to_onnx(folder, tmp_path / "onnx", type="q4_0", threads=2)
    assert done.verdict == "passed"
