"""Small random checkpoints of Qwen2 and Gemma; names and shapes are those of transformers' classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from .decoders import common, write
from .gemma_tokenizer import gemma_style_tokenizer
from .weights import Shape, llama_shapes, random_state, write_checkpoint, write_json, write_readme


def write_qwen2(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Qwen2: biases on query, key and value, rows of 832 weights, a tied head.

    ``folder`` must not exist yet; ``changes`` are to config.json.
    """
    config = {**common("Qwen2ForCausalLM", "qwen2"), "head_dim": None, "intermediate_size": 832}
    config |= {"max_window_layers": 3, "sliding_window": 4096, "use_sliding_window": False}
    config |= {"tie_word_embeddings": True, **changes}
    if config["head_dim"] is None:  # as in the published files
        del config["head_dim"]
    return write(folder, config, _qwen2_shapes, "A Qwen2-like demo checkpoint", dtype, seed)


def _qwen2_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, shape in llama_shapes(config).items():
        shapes[name] = shape
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            shapes[name.removesuffix("weight") + "bias"] = shape[:1]
    return shapes


def write_gemma2(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Gemma 2: heads wider than the hidden size, a window of 64 tokens in every other layer."""
    config = {**_gemma("Gemma2ForCausalLM", "gemma2"), "sliding_window": 64, "max_position_embeddings": 512}
    config |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, **changes}
    return _write_gemma(folder, config, "A Gemma-2-like demo checkpoint", dtype, seed)


def write_gemma3(folder: Path, *, dtype: DType = DType.BF16, seed: int = 0, **changes: Any) -> Path:
    """Write a Gemma 3: the third of four layers sees everything, and turns more slowly than the others."""
    config = {**_gemma("Gemma3ForCausalLM", "gemma3_text"), "sliding_window": 48, "num_hidden_layers": 4}
    config |= {"max_position_embeddings": 2048, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}
    config |= {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window_pattern": 3, **changes}
    return _write_gemma(folder, config, "A Gemma-3-like demo checkpoint", dtype, seed)


def _gemma(name: str, kind: str) -> dict[str, Any]:
    return {
        "architectures": [name],
        "model_type": kind,
        "hidden_size": 192,
        "intermediate_size": 448,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def _write_gemma(folder: Path, config: dict[str, Any], title: str, dtype: DType, seed: int) -> Path:
    folder.mkdir(parents=True)
    tokenizer = gemma_style_tokenizer(1600)
    size = len(tokenizer["model"]["vocab"])
    whole = {"vocab_size": size + -size % 64, **config}  # rows without a token, as the larger models have
    roles = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(
        folder,
        {
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": {
                "tokenizer_class": "GemmaTokenizer",
                "add_bos_token": True,
                "add_eos_token": False,
                "chat_template": _CHAT,
                **roles,
            },
            "special_tokens_map.json": roles,
            "generation_config.json": {"bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0},
        },
    )
    write_checkpoint(
        folder, whole, dtype=dtype, seed=seed, shapes=_gemma_shapes(whole), writer=_write_weights
    )
    text = (
        f"Layout: `{config['architectures'][0]}` with a byte-fallback BPE tokenizer in the style of Gemma's."
    )
    write_readme(folder, title, ("ko", "en"), text)
    return folder


def _write_weights(path: Path, shapes: Mapping[str, Shape], dtype: DType, seed: int) -> None:
    """As ``write_checkpoint`` writes them, but norms around 0, since one is added to them."""
    from safetensors.torch import save

    state = random_state(shapes, dtype, seed)
    state = {name: each - 1 if each.dim() == 1 else each for name, each in state.items()}
    path.write_bytes(save(state, {"format": "pt"}))


def _gemma_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    tied = {"tie_word_embeddings": True}
    for name, shape in llama_shapes({**tied, **config}).items():
        shapes[name] = shape
        place = name.removesuffix("post_attention_layernorm.weight")
        if place != name:
            for norm in ("pre", "post"):
                shapes[f"{place}{norm}_feedforward_layernorm.weight"] = shape
            for each in "qk" if "rope_local_base_freq" in config else "":
                shapes[f"{place}self_attn.{each}_norm.weight"] = (config["head_dim"],)
    return shapes


_CHAT = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}\
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' \
+ message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""
