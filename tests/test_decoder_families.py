"""Decoders other than Llama and GPT-J: logits of llama.cpp and onnxruntime against transformers in fp32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from llama_material import llama_cpp_logits, nmse, transformers_logits
from onnx_causal_material import run, session, write

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.families.exaone4 import EXAONE4
from kconv.converters.families.mistral import MISTRAL
from kconv.converters.mapping import build
from kconv.converters.samples.decoders import (
    write_exaone4,
    write_gpt_neox,
    write_mistral,
    write_qwen3,
    write_qwen3_moe,
)
from kconv.core.errors import InputError, UnsupportedModel
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType

IDS = [int(i) for i in np.random.default_rng(7).integers(2, 1000, 160)]
ROUNDED_GELU = 1e-5  # llama.cpp's is the tanh form through a table of half floats
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
SMALL = {"hidden_size": 64, "num_attention_heads": 4, "head_dim": 16, "intermediate_size": 96}
WINDOWED = {**SMALL, "num_hidden_layers": 64, "sliding_window": 24, "sliding_window_pattern": 4}

Writer = Callable[..., Path]
CASES: dict[str, tuple[Writer, dict[str, Any], float]] = {
    "qwen3": (write_qwen3, {}, 1e-9),
    "qwen3, untied": (write_qwen3, {"tie_word_embeddings": False}, 1e-9),
    "exaone4, llama 3 rope": (write_exaone4, {"rope_scaling": LLAMA3}, 1e-9),
    "qwen3 of transformers 5": (
        write_qwen3,
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}},
        1e-9,
    ),
    "qwen3-moe": (write_qwen3_moe, {}, 1e-9),
    "qwen3-moe, all experts": (write_qwen3_moe, {"num_experts": 4, "num_experts_per_tok": 4}, 1e-9),
    "gpt-neox": (write_gpt_neox, {}, ROUNDED_GELU),
    "gpt-neox, one after the other": (write_gpt_neox, {"use_parallel_residual": False}, ROUNDED_GELU),
    "gpt-neox of transformers 5": (
        write_gpt_neox,
        {
            "rotary_pct": None,
            "rotary_emb_base": None,
            "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default", "partial_rotary_factor": 0.25},
            "hidden_act": "gelu_new",
        },
        ROUNDED_GELU,
    ),
    "exaone4": (write_exaone4, {}, 1e-9),
    "exaone4, a window in 64 layers": (write_exaone4, WINDOWED, 1e-9),
    "mistral": (write_mistral, {}, 1e-9),
    "mistral, tied, no head_dim, a window of the context's size": (
        write_mistral,
        {"tie_word_embeddings": True, "head_dim": None, "sliding_window": 4096},
        1e-9,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    write_checkpoint, changes, bound = CASES[case]
    folder = write_checkpoint(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    expected = transformers_logits(folder, IDS)
    assert nmse(llama_cpp_logits(made.path, IDS), expected) < bound
    model = session(write(folder, tmp_path / "onnx"))
    ids = np.array([IDS], np.int64)
    logits, _ = run(model, ids)
    assert nmse(logits[0], expected) < 1e-9


@pytest.mark.parametrize(
    ("changes", "local"),
    [
        ({"sliding_window_pattern": "LLLG"}, [True, True, True, False] * 2),
        ({"sliding_window_pattern": 2}, [True, False] * 4),
        ({"layer_types": ["full_attention", "sliding_attention"] * 4}, [False, True] * 4),
        ({"sliding_window": None, "sliding_window_pattern": None}, [False] * 8),
    ],
)
def test_which_layers_of_exaone4_have_the_window(changes: dict[str, Any], local: list[bool]) -> None:
    config = {
        **SMALL,
        "num_hidden_layers": 8,
        "vocab_size": 100,
        "num_key_value_heads": 2,
        "sliding_window": 24,
    }
    facts = EXAONE4.read({**config, **changes})
    assert list(facts.local) == local
    assert EXAONE4.reference.config({**config, **changes})["layer_types"] == [
        "sliding_attention" if each else "full_attention" for each in local
    ]


def test_a_window_is_not_taken_where_llama_cpp_has_none(tmp_path: Path) -> None:
    folder = write_exaone4(tmp_path / "checkpoint", **{**WINDOWED, "num_hidden_layers": 4})
    with pytest.raises(UnsupportedModel, match="4 layers with a sliding window of 24"):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    write(folder, tmp_path / "onnx")


def test_a_window_of_mistral_is_for_onnx_and_refused_for_llama_cpp(tmp_path: Path) -> None:
    folder = write_mistral(tmp_path / "checkpoint", dtype=DType.F32, sliding_window=24)
    with pytest.raises(UnsupportedModel, match=r"sliding_window is 24, less than .* 4096; .* no window"):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    found, _ = run(session(write(folder, tmp_path / "onnx")), np.array([IDS], np.int64))
    assert nmse(found[0], transformers_logits(folder, IDS)) < 1e-9


def test_the_way_out_for_a_window_of_mistral_is_exact(tmp_path: Path) -> None:
    changes = {"sliding_window": 24, "max_position_embeddings": 24}
    folder = write_mistral(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    assert gguf.GGUFReader(made.path).fields["llama.context_length"].contents() == 24
    ids = IDS[:24]
    assert nmse(llama_cpp_logits(made.path, ids), transformers_logits(folder, ids)) < 1e-9


@pytest.mark.parametrize(
    ("changes", "window"),
    [
        ({}, 4096),
        ({"sliding_window": None}, None),
        ({"sliding_window": 131072}, None),
        ({"max_position_embeddings": 4097}, 4096),
        ({"max_position_embeddings": 4096}, None),
    ],
)
def test_where_mistral_has_a_window(changes: dict[str, Any], window: int | None) -> None:
    config = {**SMALL, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 9}
    facts = MISTRAL.read({**config, **changes})
    assert (facts.window, facts.kv_heads) == (window, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok is 9, expected at most num_experts 8"),
        ({"mlp_only_layers": [1]}, "experts in every layer"),
        ({"norm_topk_prob": False}, "sum to 1"),
        ({"use_sliding_window": True}, "attends to the whole text"),
        ({"num_experts": 100_000}, "experts in all, but there are"),
    ],
)
def test_what_the_moe_graph_does_not_compute_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write_qwen3_moe(tmp_path / "checkpoint")
    opened = open_checkpoint(folder)
    changed = replace(opened, config={**opened.config, **changes})
    with pytest.raises(InputError, match=message):
        build(family_for(changed.config), changed)


def test_experts_are_stacked_and_come_back(tmp_path: Path) -> None:
    from kconv.converters.mapping import unmapped

    checkpoint = open_checkpoint(write_qwen3_moe(tmp_path / "checkpoint"))
    family = family_for(checkpoint.config)
    model = build(family, checkpoint)
    stack = model.tensor("blk.1.ffn_down_exps.weight")
    names = [f"model.layers.1.mlp.experts.{e}.down_proj.weight" for e in range(8)]
    wanted = np.stack([checkpoint.tensors[n].read(0, checkpoint.tensors[n].rows) for n in names])
    assert (stack.read(0, 8) == wanted).all()
    assert (stack.read(3, 5) == wanted[3:5]).all()
    back = unmapped(family, checkpoint, {tensor.name: tensor for tensor in model.tensors})
    assert set(back) == set(checkpoint.tensors)
    for name, tensor in back.items():
        original = checkpoint.tensors[name]
        assert tensor.shape == original.shape
        assert (tensor.read(0, tensor.rows) == original.read(0, original.rows)).all(), name
        assert (tensor.read(3, 7) == original.read(3, 7)).all(), name


def test_keys_of_lists_and_flags(tmp_path: Path) -> None:
    folder = write_exaone4(tmp_path / "checkpoint", **WINDOWED)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    fields = gguf.GGUFReader(made.path).fields
    pattern = fields["exaone4.attention.sliding_window_pattern"]
    assert pattern.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.BOOL]
    assert pattern.contents() == [True, True, True, False] * 16
