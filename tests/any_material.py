"""Tiny checkpoints of architectures kconv has no family for, and llama.cpp's own conversions of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from llama_cpp_material import fetched_converter, run_converter, train_sentencepiece
from shared_material import shared

from kconv.converters.samples.weights import write_json

_COMMON: Mapping[str, Any] = {
    "vocab_size": 800,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# As published: the ends of the ramp are no whole dimensions, as llama.cpp computes them.
_GPT_OSS_YARN: Mapping[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 4096,
    "truncate": False,
}
# Phi: llama.cpp looks for tokens of the published model in files that are called Phi-3.
KINDS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "rope_theta": 5000.0}),
    "gemma2": (
        "Gemma2",
        {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 32, "tie_word_embeddings": True},
    ),
    "phi": ("Phi3", {"rope_theta": 5000.0, "sliding_window": 200}),
    "deepseek": (
        "DeepseekV2",
        {"num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 32, "qk_rope_head_dim": 16}
        | {"qk_nope_head_dim": 32, "v_head_dim": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "n_shared_experts": 1, "first_k_dense_replace": 1}
        | {"routed_scaling_factor": 1.0, "norm_topk_prob": False, "topk_method": "greedy", "n_group": 1}
        | {"topk_group": 1},
    ),
    "gptoss": (
        "GptOss",
        {"head_dim": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}
        | {"max_position_embeddings": 131072, "rope_parameters": _GPT_OSS_YARN},
    ),
}  # fmt: skip


def write_any(folder: Path, kind: str, dtype: str = "float32") -> Path:
    """Save a small random model of that kind, by transformers, with a SentencePiece tokenizer."""
    import torch
    import transformers

    name, changes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**_COMMON, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:  # initialized to constants, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.copy_(torch.randn_like(parameter) * 0.12)  # else too small for attention to matter
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    plain = kind != "gemma2"
    train_sentencepiece(folder / "tokenizer.model", dummy_prefix=plain)
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    class_ = "LlamaTokenizer" if plain else "GemmaTokenizer"
    settings = {"tokenizer_class": class_, "add_bos_token": True, "add_eos_token": False, **roles}
    write_json(
        folder, {"tokenizer_config.json": {**settings, "legacy": True}, "special_tokens_map.json": roles}
    )
    return folder


def any_checkpoints(factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder for every kind; nobody may change them."""

    def make(root: Path) -> None:
        for kind in KINDS:
            write_any(root / kind, kind)

    root = shared(factory, "any-checkpoints", make)
    return {kind: root / kind for kind in KINDS}


def any_files(factory: pytest.TempPathFactory, types: tuple[str, ...] = ("f32", "q8_0")) -> Path:
    """A folder with ``KIND-TYPE.gguf``, made by llama.cpp's converter, or skip."""
    script = fetched_converter()
    sources = any_checkpoints(factory)

    def make(root: Path) -> None:
        jobs = [(sources[kind], root / f"{kind}-{type_}.gguf", type_) for kind in KINDS for type_ in types]
        run_converter(script, jobs)

    return shared(factory, "any-files", make)
