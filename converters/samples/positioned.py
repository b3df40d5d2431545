"""Small random checkpoints of decoders without rotary positions: GPT-2, MPT, and OPT and XGLM in any size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from .decoders import write
from .weights import Shape


def write_gpt2(folder: Path, *, dtype: DType = DType.F16, seed: int = 0, **changes: Any) -> Path:
    """Write a GPT-2 like ko-gpt-trinity: feed-forward layers of a width of their own, an odd context.

    ``folder`` must not exist yet; ``changes`` are to config.json.
    """
    config: dict[str, Any] = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": 192,
        "n_inner": 800,
        "n_layer": 3,
        "n_head": 3,
        "n_positions": 515,
        "n_ctx": 515,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-05,
        "scale_attn_weights": True,
        **changes,
    }
    return write(folder, config, _gpt2_shapes, "A GPT-2-like demo checkpoint", dtype, seed)


def _normed(shapes: dict[str, Shape], place: str, hidden: int) -> None:
    shapes[f"{place}.weight"] = shapes[f"{place}.bias"] = (hidden,)


def _gpt2_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, rows = config["n_embd"], config["vocab_size"]
    inner = config.get("n_inner") or 4 * hidden
    shapes: dict[str, Shape] = {
        "transformer.wte.weight": (rows, hidden),
        "transformer.wpe.weight": (config["n_positions"], hidden),
    }
    turned: dict[str, Shape] = {
        "attn.c_attn": (hidden, 3 * hidden),
        "attn.c_proj": (hidden, hidden),
        "mlp.c_fc": (hidden, inner),
        "mlp.c_proj": (inner, hidden),
    }
    for layer in range(config["n_layer"]):
        place = f"transformer.h.{layer}"
        for name, shape in turned.items():
            shapes[f"{place}.{name}.weight"], shapes[f"{place}.{name}.bias"] = shape, shape[1:]
        shapes[f"{place}.attn.masked_bias"] = (1,)  # old files keep it, and the mask itself
        shapes[f"{place}.attn.bias"] = (1, 1, 8, 8)
        _normed(shapes, f"{place}.ln_1", hidden)
        _normed(shapes, f"{place}.ln_2", hidden)
    _normed(shapes, "transformer.ln_f", hidden)
    return shapes if config.get("tie_word_embeddings", True) else {**shapes, "lm_head.weight": (rows, hidden)}


def write_opt(folder: Path, *, dtype: DType = DType.F16, seed: int = 0, **changes: Any) -> Path:
    """Write an OPT: ReLU, positions that begin at row 2, a tied head. The sample ``opt`` is trained."""
    config: dict[str, Any] = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 192,
        "word_embed_proj_dim": 192,
        "ffn_dim": 800,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": 515,
        "activation_function": "relu",
        "do_layer_norm_before": True,
        "_remove_final_layer_norm": False,
        **changes,
    }
    return write(folder, config, _opt_shapes, "An OPT-like demo checkpoint", dtype, seed)


def _fairseq_layers(place: str, layers: int, hidden: int, inner: int, *, biased: bool) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    linear: dict[str, Shape] = {f"self_attn.{each}_proj": (hidden, hidden) for each in ("q", "k", "v", "out")}
    linear |= {"fc1": (inner, hidden), "fc2": (hidden, inner)}
    for layer in range(layers):
        for name, shape in linear.items():
            shapes[f"{place}.{layer}.{name}.weight"] = shape
            if biased:
                shapes[f"{place}.{layer}.{name}.bias"] = shape[:1]
        _normed(shapes, f"{place}.{layer}.self_attn_layer_norm", hidden)
        _normed(shapes, f"{place}.{layer}.final_layer_norm", hidden)
    return shapes


def _opt_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, base = config["hidden_size"], "model.decoder"
    shapes: dict[str, Shape] = {
        f"{base}.embed_tokens.weight": (config["vocab_size"], hidden),
        f"{base}.embed_positions.weight": (config["max_position_embeddings"] + 2, hidden),
    }
    biased = config.get("enable_bias", True)
    layers = config["num_hidden_layers"]
    shapes |= _fairseq_layers(f"{base}.layers", layers, hidden, config["ffn_dim"], biased=biased)
    _normed(shapes, f"{base}.final_layer_norm", hidden)
    return shapes


def write_xglm(folder: Path, *, dtype: DType = DType.F16, seed: int = 0, **changes: Any) -> Path:
    """Write an XGLM: sinusoids that no file holds, scaled embeddings."""
    config: dict[str, Any] = {
        "architectures": ["XGLMForCausalLM"],
        "model_type": "xglm",
        "d_model": 192,
        "ffn_dim": 800,
        "num_layers": 3,
        "attention_heads": 3,
        "max_position_embeddings": 515,
        "activation_function": "gelu",
        "scale_embedding": True,
        "pad_token_id": 1,
        **changes,
    }
    return write(folder, config, _xglm_shapes, "An XGLM-like demo checkpoint", dtype, seed)


def _xglm_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden, layers = config["d_model"], config["num_layers"]
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    shapes |= _fairseq_layers("model.layers", layers, hidden, config["ffn_dim"], biased=True)
    _normed(shapes, "model.layer_norm", hidden)
    return shapes


def write_mpt(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write an MPT: ALiBi over a number of heads that is no power of two, no biases, clipped q, k and v."""
    attention = {"alibi": True, "alibi_bias_max": 8, "clip_qkv": 6.0, "qk_ln": False, "softmax_scale": None}
    config: dict[str, Any] = {
        "architectures": ["MptForCausalLM"],
        "model_type": "mpt",
        "d_model": 192,
        "n_heads": 6,
        "n_layers": 3,
        "expansion_ratio": 4,
        "max_seq_len": 515,
        "no_bias": True,
        "attn_config": attention,
        **changes,
    }
    return write(folder, config, _mpt_shapes, "An MPT-like demo checkpoint", dtype, seed)


def _mpt_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    hidden = config["d_model"]
    shapes: dict[str, Shape] = {"transformer.wte.weight": (config["vocab_size"], hidden)}
    for layer in range(config["n_layers"]):
        place = f"transformer.blocks.{layer}"
        shapes[f"{place}.norm_1.weight"] = shapes[f"{place}.norm_2.weight"] = (hidden,)
        shapes[f"{place}.attn.Wqkv.weight"] = (3 * hidden, hidden)
        shapes[f"{place}.attn.out_proj.weight"] = (hidden, hidden)
        shapes[f"{place}.ffn.up_proj.weight"] = (4 * hidden, hidden)
        shapes[f"{place}.ffn.down_proj.weight"] = (hidden, 4 * hidden)
    return {**shapes, "transformer.norm_f.weight": (hidden,)}
