"""Kanana, EXAONE 3 and HyperCLOVA X: logits of llama.cpp and onnxruntime against transformers in fp32."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from llama_material import llama_cpp_logits, nmse, transformers_logits
from onnx_causal_material import run, session, write
from safetensors.torch import load_file

from kconv.converters import to_gguf
from kconv.converters.families import FAMILIES, NEAR, family_for
from kconv.converters.families.hyperclovax import HYPERCLOVAX, WITHOUT_NORMS
from kconv.converters.mapping import build, unmapped
from kconv.converters.reshaping import join
from kconv.converters.samples.llamas import write_exaone, write_hyperclovax, write_kanana
from kconv.core.errors import CheckpointError, InputError, MappingError, UnsupportedModel
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType

IDS = [int(i) for i in np.random.default_rng(7).integers(2, 1000, 160)]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
BOUND = 1e-9

Floats = npt.NDArray[np.float32]
Writer = Callable[..., Path]


def kanana_logits(folder: Path, ids: list[int]) -> Floats:
    """The logits past its check that the heads divide the hidden size."""
    import transformers

    checks = transformers.LlamaConfig.__class_validators__  # type: ignore[attr-defined]
    others = [check for check in checks if check.__name__ != "validate_architecture"]
    transformers.LlamaConfig.__class_validators__ = others  # type: ignore[attr-defined]
    try:
        return transformers_logits(folder, ids)
    finally:
        transformers.LlamaConfig.__class_validators__ = checks  # type: ignore[attr-defined]


def exaone_logits(folder: Path, ids: list[int]) -> Floats:
    """Those of transformers' Llama with EXAONE's weights: transformers has no class of that name."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((folder / "config.json").read_text("utf-8"))
    same = ("hidden_size", "num_attention_heads", "num_key_value_heads", "vocab_size", "rope_theta")
    same += ("max_position_embeddings", "rope_scaling", "tie_word_embeddings", "intermediate_size")
    given = {key: config[key] for key in same if config.get(key) is not None}
    settings = LlamaConfig(
        **{"intermediate_size": 4 * config["hidden_size"], **given},
        num_hidden_layers=config["num_layers"],
        rms_norm_eps=config["layer_norm_epsilon"],
        hidden_act=config["activation_function"],
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(settings).eval()
    state: dict[str, torch.Tensor] = {}
    for name, value in load_file(folder / "model.safetensors").items():
        for old, new in (
            ("transformer.h.", "model.layers."),
            ("transformer.wte", "model.embed_tokens"),
            ("transformer.ln_f", "model.norm"),
            (".ln_1.", ".input_layernorm."),
            (".ln_2.", ".post_attention_layernorm."),
            (".attn.attention.", ".self_attn."),
            (".out_proj.", ".o_proj."),
            (".c_fc_0.", ".gate_proj."),
            (".c_fc_1.", ".up_proj."),
            (".c_proj.", ".down_proj."),
        ):
            name = name.replace(old, new)
        state[name] = value.float()
    missing = set(model.load_state_dict(state, strict=False).missing_keys)
    assert missing <= {"lm_head.weight"}
    model.tie_weights()
    with torch.no_grad():
        logits: Floats = model(torch.tensor([ids])).logits[0].numpy()
    return logits


Truth = Callable[[Path, list[int]], Floats]
CASES: dict[str, tuple[Writer, dict[str, Any], Truth]] = {
    "kanana": (write_kanana, {}, kanana_logits),
    "kanana, untied": (write_kanana, {"tie_word_embeddings": False}, kanana_logits),
    "exaone": (write_exaone, {}, exaone_logits),
    "exaone, untied, silent": (
        write_exaone,
        {"tie_word_embeddings": False, "rope_scaling": None, "head_dim": None, "intermediate_size": None},
        exaone_logits,
    ),
    "exaone, as many keys as heads": (write_exaone, {"num_key_value_heads": None}, exaone_logits),
    "hyperclovax": (write_hyperclovax, {}, transformers_logits),
    "hyperclovax, tied": (write_hyperclovax, {"tie_word_embeddings": True}, transformers_logits),
    "hyperclovax, tied, one scalar for both": (
        write_hyperclovax,
        {"tie_word_embeddings": True, "logits_scaling": 10.0},
        transformers_logits,
    ),
    "hyperclovax, usual attention": (
        write_hyperclovax,
        {"attention_multiplier": None, "head_dim": None, "num_key_value_heads": None},
        transformers_logits,
    ),
    "hyperclovax, yarn": (write_hyperclovax, {"rope_scaling": YARN}, transformers_logits),
    "hyperclovax, no norms behind": (write_hyperclovax, {"use_post_norm": False}, transformers_logits),
    "hyperclovax, no norms behind, tied, llama 3 rope": (
        write_hyperclovax,
        {"use_post_norm": False, "tie_word_embeddings": True, "rope_scaling": LLAMA3},
        transformers_logits,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_transformers(case: str, tmp_path: Path) -> None:
    write_checkpoint, changes, truth = CASES[case]
    folder = write_checkpoint(tmp_path / "checkpoint", dtype=DType.F32, **changes)
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    expected = truth(folder, IDS)
    assert nmse(llama_cpp_logits(made.path, IDS), expected) < BOUND
    found, _ = run(session(write(folder, tmp_path / "onnx")), np.array([IDS], np.int64))
    assert nmse(found[0], expected) < BOUND


@pytest.mark.parametrize("writer", [write_kanana, write_exaone, write_hyperclovax])
def test_the_proof_agrees(writer: Writer, tmp_path: Path) -> None:
    folder = writer(tmp_path / "checkpoint")
    for made in to_gguf(folder, tmp_path / "out", types=["f32", "q4_k_m"]).outputs:
        proof = json.loads(made.manifest.read_text("utf-8"))["proof"]
        assert proof["verdict"] == "passed"


def test_exaone_has_a_family_and_its_graph(tmp_path: Path) -> None:
    assert "ExaoneForCausalLM" not in NEAR
    folder = write_exaone(tmp_path / "checkpoint")
    (made,) = to_gguf(folder, tmp_path / "out.gguf", verify=False).outputs
    reader = gguf.GGUFReader(made.path)
    assert reader.fields["general.architecture"].contents() == "exaone"
    assert reader.fields["exaone.rope.dimension_count"].contents() == 80
    names = {tensor.name for tensor in reader.tensors}
    assert "rope_freqs.weight" in names
    assert "output.weight" not in names


def test_names_of_llamas_keys_are_read_in_exaone_as_well() -> None:
    config = {"architectures": ["ExaoneForCausalLM"], "hidden_size": 64, "num_attention_heads": 4}
    family = family_for(config)
    facts = family.read({**config, "num_hidden_layers": 3, "vocab_size": 9})
    assert (facts.layers, facts.ffn, facts.epsilon, facts.tied) == (3, 256, 1e-5, True)
    with pytest.raises(CheckpointError, match="num_layers is missing"):
        family.read({**config, "vocab_size": 9})
    with pytest.raises(CheckpointError, match="head_dim is 32, expected 16"):
        family.read({**config, "num_layers": 3, "vocab_size": 9, "head_dim": 32})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is true"),
        ({"mlp_bias": True}, "mlp_bias is true"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; llama.cpp's glm4 graph supports only silu"),
        ({"rope_scaling": LLAMA3}, "'llama3', which llama.cpp's glm4 graph does not support"),
        ({"residual_multiplier": 0}, "residual_multiplier is 0, expected a positive number"),
        ({"embedding_multiplier": "10"}, "embedding_multiplier is '10', expected a positive number"),
    ],
)
def test_what_the_glm4_graph_does_not_compute_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    opened = open_checkpoint(write_hyperclovax(tmp_path / "checkpoint"))
    changed = replace(opened, config={**opened.config, **changes})
    with pytest.raises(InputError, match=message):
        build(family_for(changed.config), changed)


def test_onnx_takes_llama_3_rope_where_glm4_does_not(tmp_path: Path) -> None:
    folder = write_hyperclovax(tmp_path / "checkpoint", dtype=DType.F32, rope_scaling=LLAMA3)
    with pytest.raises(UnsupportedModel, match="glm4"):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    found, _ = run(session(write(folder, tmp_path / "onnx")), np.array([IDS], np.int64))
    assert nmse(found[0], transformers_logits(folder, IDS)) < BOUND


def test_without_norms_behind_it_is_a_llama(tmp_path: Path) -> None:
    config = {"architectures": ["HyperCLOVAXForCausalLM"]}
    assert family_for({**config, "use_post_norm": False}) is WITHOUT_NORMS
    assert family_for(config) is family_for({**config, "use_post_norm": None}) is HYPERCLOVAX
    assert HYPERCLOVAX in FAMILIES
    opened = open_checkpoint(write_hyperclovax(tmp_path / "checkpoint"))
    changed = replace(opened, config={**opened.config, "use_post_norm": False})
    with pytest.raises(MappingError, match=r"unexpected: model\.layers\.0\.post_norm1\.weight"):
        build(family_for(changed.config), changed)


def test_scalars_are_folded_and_come_back(tmp_path: Path) -> None:
    for name, changes in {"own": {}, "tied": {"tie_word_embeddings": True}}.items():
        checkpoint = open_checkpoint(write_hyperclovax(tmp_path / name, **changes))
        family = family_for(checkpoint.config)
        model = build(family, checkpoint)
        back = unmapped(family, checkpoint, {tensor.name: tensor for tensor in model.tensors})
        assert set(back) - {"lm_head.weight"} == set(checkpoint.tensors) - {"lm_head.weight"}
        for source, original in checkpoint.tensors.items():
            read = [_as_floats(tensor, 0, original.rows) for tensor in (back[source], original)]
            assert np.allclose(*read, rtol=3e-7, atol=0), source
            part = _as_floats(back[source], 5, 11)
            assert np.array_equal(part, read[0][5:11]), source
        both = model.tensor("blk.1.ffn_up.weight")
        assert both.shape == (1408, 256)
        assert model.tensor("token_embd.weight").dtype is DType.F32
        assert both.dtype is DType.BF16


def _as_floats(tensor: Any, start: int, stop: int) -> Floats:
    rows = tensor.read(start, stop)
    return (rows.astype(np.uint32) << 16).view(np.float32) if tensor.dtype is DType.BF16 else rows


def test_gate_and_up_must_be_alike(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_hyperclovax(tmp_path / "checkpoint"))
    gate = checkpoint.tensors["model.layers.0.mlp.gate_proj.weight"]
    narrow = replace(gate, name="narrow", shape=(gate.rows - 1, *gate.shape[1:]))
    with pytest.raises(CheckpointError, match=r"narrow is \[703, 256\]"):
        join(2).apply([gate, narrow], {})
