"""A trained HyperCLOVA X: the scalars folded into its weights make no type lose more than the type costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from conftest import KOREAN
from llama_material import llama_cpp_logits, nmse, transformers_logits

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample

Floats = npt.NDArray[np.float32]
TYPES = ("f32", "bf16", "q8_0", "q6_k", "q4_k_m", "q4_0")
STORY = "옛날 옛날 깊은 숲속에 작은 다람쥐가 살았어요. 어느 날 다람쥐는 친구를 만나러 갔어요. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("hyperclovax", tmp_path_factory.mktemp("trained") / "checkpoint")


@pytest.fixture(scope="module")
def files(folder: Path) -> dict[str, Path]:
    made = to_gguf(folder, folder.parent / "out", types=TYPES, verify=False)
    assert made.parity.verdict == "exact"
    return {name: output.path for name, output in zip(TYPES, made.outputs, strict=True)}


@pytest.fixture(scope="module")
def ids(folder: Path) -> list[int]:
    from tokenizers import Tokenizer

    return list(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(STORY + KOREAN).ids[:200])


def dequantized(path: Path, config: Any) -> dict[str, Floats]:
    """The file's weights under transformers' names, the scalars taken off again: by the test's own code."""
    held = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}

    def of(name: str) -> Floats:
        tensor = held[name]
        return np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)

    def halves(rows: Floats, heads: int) -> Floats:
        return rows.reshape(heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    query = config.attention_multiplier * config.head_dim**0.5
    state = {
        "model.embed_tokens.weight": of("token_embd.weight") / config.embedding_multiplier,
        "lm_head.weight": of("output.weight") / config.logits_scaling,
        "model.norm.weight": of("output_norm.weight"),
    }
    for layer in range(config.num_hidden_layers):
        here, there = f"blk.{layer}", f"model.layers.{layer}"
        gate, up = np.split(of(f"{here}.ffn_up.weight"), 2)
        parts = {
            "input_layernorm": of(f"{here}.attn_norm.weight"),
            "self_attn.q_proj": halves(of(f"{here}.attn_q.weight"), config.num_attention_heads) / query,
            "self_attn.k_proj": halves(of(f"{here}.attn_k.weight"), config.num_key_value_heads),
            "self_attn.v_proj": of(f"{here}.attn_v.weight"),
            "self_attn.o_proj": of(f"{here}.attn_output.weight"),
            "post_norm1": of(f"{here}.post_attention_norm.weight") / config.residual_multiplier,
            "post_attention_layernorm": of(f"{here}.ffn_norm.weight"),
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": of(f"{here}.ffn_down.weight"),
            "post_norm2": of(f"{here}.post_ffw_norm.weight") / config.residual_multiplier,
        }
        state |= {f"{there}.{name}.weight": value for name, value in parts.items()}
    return state


def computed_by_transformers(path: Path, folder: Path, ids: list[int]) -> Floats:
    import torch
    from transformers import HyperCLOVAXConfig, HyperCLOVAXForCausalLM

    config = HyperCLOVAXConfig.from_pretrained(folder)
    config.tie_word_embeddings = False  # each is stored, and rounded, by itself
    config._attn_implementation = "eager"
    model = HyperCLOVAXForCausalLM(config).eval()
    state = {
        name: torch.from_numpy(np.ascontiguousarray(value, np.float32))
        for name, value in dequantized(path, config).items()
    }
    model.load_state_dict(state)
    with torch.no_grad():
        logits: Floats = model(torch.tensor([ids])).logits[0].numpy()
    return logits


def divergence(right: Floats, other: Floats) -> float:
    """Mean KL divergence in nats."""

    def logs(values: Floats) -> npt.NDArray[np.float64]:
        wide = values.astype(np.float64)
        wide -= wide.max(1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(1, keepdims=True))

    first, second = logs(right), logs(other)
    return float((np.exp(first) * (first - second)).sum(1).mean())


def test_it_has_learned_something(folder: Path, ids: list[int]) -> None:
    logits = transformers_logits(folder, ids)[:60]
    chance = np.log(logits.shape[1])
    wide = logits.astype(np.float64)
    losses = np.log(np.exp(wide).sum(1))[:-1] - wide[np.arange(59), ids[1:60]]
    assert losses.mean() < chance / 2


def test_f32_is_exact(folder: Path, files: dict[str, Path], ids: list[int]) -> None:
    assert nmse(llama_cpp_logits(files["f32"], ids), transformers_logits(folder, ids)) < 1e-9


def test_the_likeliest_tokens_are_transformers(folder: Path, files: dict[str, Path], ids: list[int]) -> None:
    """128 tokens, each the likeliest after those before it."""
    import torch
    from transformers import AutoModelForCausalLM

    begin = ids[:10]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    written = model.generate(
        torch.tensor([begin]),
        attention_mask=torch.ones(1, len(begin), dtype=torch.long),
        max_new_tokens=128,
        min_new_tokens=128,
        do_sample=False,
        eos_token_id=None,
    )[0].tolist()
    found = llama_cpp_logits(files["f32"], written[:-1])[len(begin) - 1 :].argmax(1)
    assert found.tolist() == written[len(begin) :]


@pytest.mark.parametrize("name", TYPES[1:])
def test_a_type_loses_what_it_costs(name: str, folder: Path, files: dict[str, Path], ids: list[int]) -> None:
    """At most a tenth more than transformers with the file's weights, and what rounded activations cost."""
    right, ours = transformers_logits(folder, ids), llama_cpp_logits(files[name], ids)
    same_weights = computed_by_transformers(files[name], folder, ids)
    activations = divergence(same_weights, ours)
    assert divergence(right, ours) <= 1.1 * divergence(right, same_weights) + activations
