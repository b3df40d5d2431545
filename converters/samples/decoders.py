"""Small random checkpoints of decoder-only families; names and shapes are those of transformers' classes.

Their tokenizer is one trained on the spot in the style of Llama 3's, which the families' own are not: what
these checkpoints are for is the shape of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from .tokenizer_files import tiktoken_style_tokenizer
from .weights import Shape, llama_shapes, write_checkpoint, write_json, write_readme

_BASE_VOCABULARY = 1000
_END = "<|end_of_text|>"


def write_qwen3(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Qwen3: norms on query and key, heads wider than the hidden size, a tied head.

    ``folder`` must not exist yet; ``changes`` are to config.json.
    """
    config = {**common("Qwen3ForCausalLM", "qwen3"), "tie_word_embeddings": True, **changes}
    config |= {"intermediate_size": 704, "max_window_layers": 3, "use_sliding_window": False}
    return write(folder, config, _qwen3_shapes, "A Qwen3-like demo checkpoint", dtype, seed)


def write_qwen3_moe(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Qwen3-MoE: eight experts a layer, of which two compute each token."""
    config = {**common("Qwen3MoeForCausalLM", "qwen3_moe"), "intermediate_size": 704}
    config |= {
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 256,
        "norm_topk_prob": True,
    }
    config |= {"decoder_sparse_step": 1, "mlp_only_layers": [], **changes}
    return write(folder, config, _qwen3_moe_shapes, "A Qwen3-MoE-like demo checkpoint", dtype, seed)


def write_gpt_neox(folder: Path, *, dtype: DType = DType.F16, seed: int = 0, **changes: Any) -> Path:
    """Write a GPT-NeoX like Polyglot-Ko: half of each head turns, attention and feed-forward side by side."""
    config: dict[str, Any] = {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-05,
        "rotary_emb_base": 10000,
        "rotary_pct": 0.5,
        "use_parallel_residual": True,
        "tie_word_embeddings": False,
        **changes,
    }
    return write(folder, config, _gpt_neox_shapes, "A GPT-NeoX-like demo checkpoint", dtype, seed)


def write_exaone4(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write an EXAONE 4.0 like the 1.2B: norms behind attention and feed-forward, no window."""
    config = {**common("Exaone4ForCausalLM", "exaone4"), "head_dim": 64, "intermediate_size": 704}
    config |= {"sliding_window": None, "sliding_window_pattern": None, **changes}
    if config["sliding_window"] is None:
        config.setdefault("layer_types", ["full_attention"] * config["num_hidden_layers"])
    return write(folder, config, _exaone4_shapes, "An EXAONE-4-like demo checkpoint", dtype, seed)


def write_mistral(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Mistral like Nemo: heads wider than the hidden size, no window."""
    config = {**common("MistralForCausalLM", "mistral"), "intermediate_size": 704}
    config |= {"rms_norm_eps": 1e-05, "sliding_window": None, **changes}
    return write(folder, config, llama_shapes, "A Mistral-like demo checkpoint", dtype, seed)


def common(name: str, kind: str) -> dict[str, Any]:
    return {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    }


def write(folder: Path, config: Mapping[str, Any], shapes: Any, title: str, dtype: DType, seed: int) -> Path:
    folder.mkdir(parents=True)
    tokenizer = tiktoken_style_tokenizer(_BASE_VOCABULARY)
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    first, end = added["<|begin_of_text|>"], added[_END]
    ids = {"bos_token_id": first, "eos_token_id": end, "pad_token_id": end}
    rows = len(tokenizer["model"]["vocab"]) + len(added)
    whole = {"vocab_size": rows + -rows % 64, **ids, **config}  # rows without a token, as many models have
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": _END, "pad_token": _END}
    write_json(
        folder,
        {
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **roles},
            "special_tokens_map.json": roles,
            "generation_config.json": ids,
        },
    )
    write_checkpoint(folder, whole, dtype=dtype, seed=seed, shapes=shapes(whole))
    text = (
        f"Layout: `{config['architectures'][0]}` with a byte-level BPE tokenizer in the style of Llama 3's."
    )
    write_readme(folder, title, ("ko", "en"), text)
    return folder


def _attention_shapes(config: Mapping[str, Any], place: str) -> dict[str, Shape]:
    hidden, size = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    return {
        f"{place}.self_attn.q_proj.weight": (queries, hidden),
        f"{place}.self_attn.k_proj.weight": (keys, hidden),
        f"{place}.self_attn.v_proj.weight": (keys, hidden),
        f"{place}.self_attn.o_proj.weight": (hidden, queries),
        f"{place}.self_attn.q_norm.weight": (size,),
        f"{place}.self_attn.k_norm.weight": (size,),
    }


def _gated_shapes(place: str, hidden: int, inner: int) -> dict[str, Shape]:
    return {
        f"{place}.gate_proj.weight": (inner, hidden),
        f"{place}.up_proj.weight": (inner, hidden),
        f"{place}.down_proj.weight": (hidden, inner),
    }


def _around(config: Mapping[str, Any], layers: Mapping[str, Shape]) -> dict[str, Shape]:
    table = (config["vocab_size"], config["hidden_size"])
    norm = {"model.norm.weight": (config["hidden_size"],)}
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": table, **layers, **norm}
    return shapes if config["tie_word_embeddings"] else {**shapes, "lm_head.weight": table}


def _gated(config: Mapping[str, Any], place: str) -> dict[str, Shape]:
    return _gated_shapes(f"{place}.mlp", config["hidden_size"], config["intermediate_size"])


def _experts(config: Mapping[str, Any], place: str) -> dict[str, Shape]:
    hidden, experts = config["hidden_size"], config["num_experts"]
    shapes: dict[str, Shape] = {f"{place}.mlp.gate.weight": (experts, hidden)}
    for expert in range(experts):
        shapes |= _gated_shapes(f"{place}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
    return shapes


def _shapes(
    config: Mapping[str, Any],
    norms: tuple[str, str],
    feed_forward: Callable[[Mapping[str, Any], str], dict[str, Shape]] = _gated,
) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for layer in range(config["num_hidden_layers"]):
        place = f"model.layers.{layer}"
        shapes |= _attention_shapes(config, place)
        shapes |= feed_forward(config, place)
        shapes |= {f"{place}.{norm}.weight": (config["hidden_size"],) for norm in norms}
    return _around(config, shapes)


def _qwen3_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    return _shapes(config, ("input_layernorm", "post_attention_layernorm"))


def _qwen3_moe_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    return _shapes(config, ("input_layernorm", "post_attention_layernorm"), _experts)


def _exaone4_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    return _shapes(config, ("post_attention_layernorm", "post_feedforward_layernorm"))


def _gpt_neox_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes: dict[str, Shape] = {"gpt_neox.embed_in.weight": (rows, hidden)}
    linear: dict[str, Shape] = {
        "attention.query_key_value": (3 * hidden, hidden),
        "attention.dense": (hidden, hidden),
        "mlp.dense_h_to_4h": (inner, hidden),
        "mlp.dense_4h_to_h": (hidden, inner),
    }
    for layer in range(config["num_hidden_layers"]):
        place = f"gpt_neox.layers.{layer}"
        for name, shape in linear.items():
            shapes[f"{place}.{name}.weight"], shapes[f"{place}.{name}.bias"] = shape, shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{place}.{norm}.weight"] = shapes[f"{place}.{norm}.bias"] = (hidden,)
    for key in ("weight", "bias"):
        shapes[f"gpt_neox.final_layer_norm.{key}"] = (hidden,)
    return {**shapes, "embed_out.weight": (rows, hidden)}
