"""Small random checkpoints of Llama's relatives: Kanana, EXAONE 3, HyperCLOVA X."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from .decoders import common, write
from .weights import Shape, llama_shapes


def write_kanana(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Llama like Kanana nano 2.1B: the hidden size is no multiple of the heads; a tied head.

    ``folder`` must not exist yet; ``changes`` are to config.json.
    """
    config = {**common("LlamaForCausalLM", "llama"), "hidden_size": 320, "num_attention_heads": 6}
    config |= {"head_dim": 64, "intermediate_size": 704, "rms_norm_eps": 1e-05, "rope_theta": 500000.0}
    config |= {"tie_word_embeddings": True, **changes}
    return write(folder, config, llama_shapes, "A Kanana-like demo checkpoint", dtype, seed)


def write_exaone(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write an EXAONE 3.5 like the 2.4B: heads of 80, a tied head, Llama 3.1's scaling of positions."""
    config: dict[str, Any] = {
        "architectures": ["ExaoneForCausalLM"],
        "model_type": "exaone",
        "activation_function": "silu",
        "hidden_size": 320,
        "intermediate_size": 704,
        "num_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 80,
        "layer_norm_epsilon": 1e-05,
        "max_position_embeddings": 4096,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        "tie_word_embeddings": True,
        **changes,
    }
    return write(folder, config, _exaone_shapes, "An EXAONE-3.5-like demo checkpoint", dtype, seed)


def _exaone_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    inner = config["intermediate_size"] or 4 * hidden
    keys = (config["num_key_value_heads"] or heads) * (hidden // heads)
    shapes: dict[str, Shape] = {"transformer.wte.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_layers"]):
        place = f"transformer.h.{layer}"
        shapes |= {
            f"{place}.ln_1.weight": (hidden,),
            f"{place}.attn.attention.q_proj.weight": (hidden, hidden),
            f"{place}.attn.attention.k_proj.weight": (keys, hidden),
            f"{place}.attn.attention.v_proj.weight": (keys, hidden),
            f"{place}.attn.attention.out_proj.weight": (hidden, hidden),
            f"{place}.ln_2.weight": (hidden,),
            f"{place}.mlp.c_fc_0.weight": (inner, hidden),
            f"{place}.mlp.c_fc_1.weight": (inner, hidden),
            f"{place}.mlp.c_proj.weight": (hidden, inner),
        }
    shapes["transformer.ln_f.weight"] = (hidden,)
    return (
        shapes
        if config["tie_word_embeddings"]
        else {**shapes, "lm_head.weight": (config["vocab_size"], hidden)}
    )


def write_hyperclovax(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a HyperCLOVA X like SEED Think: norms behind attention and feed-forward, four scalars."""
    config = {**common("HyperCLOVAXForCausalLM", "hyperclovax"), "intermediate_size": 704}
    config |= {"embedding_multiplier": 10.0, "logits_scaling": 0.125, "residual_multiplier": 0.7}
    config |= {"attention_multiplier": 0.0078125, "use_post_norm": True, **changes}
    return write(folder, config, _hyperclovax_shapes, "A HyperCLOVA-X-like demo checkpoint", dtype, seed)


def _hyperclovax_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    norms = ("post_norm1", "post_norm2") if config["use_post_norm"] else ()
    places = [
        f"model.layers.{layer}.{norm}" for layer in range(config["num_hidden_layers"]) for norm in norms
    ]
    return {**llama_shapes(config), **{f"{place}.weight": (config["hidden_size"],) for place in places}}
