"""A small random UMT5 with a unigram vocabulary trained on the spot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from .tokenizer_files import unigram_sentencepiece
from .weights import Shape, random_slabs, write_checkpoint, write_json, write_readme

_VOCABULARY = 1200
_QUERIES = 0.2  # about the root of 1 / d_kv


def write_umt5(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a UMT5: relative biases in every block, heads wider than the hidden size, a head of its own.

    ``folder`` must not exist yet; ``changes`` are to config.json.
    """
    config: dict[str, Any] = {
        "architectures": ["UMT5ForConditionalGeneration"],
        "model_type": "umt5",
        "vocab_size": 1216,  # as published ones, more rows than the tokenizer has tokens
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 224,
        "num_layers": 3,
        "num_decoder_layers": 2,
        "num_heads": 6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "tokenizer_class": "T5Tokenizer",
        **changes,
    }
    folder.mkdir(parents=True)
    write_checkpoint(folder, config, seed=seed, shapes=t5_shapes(config), writer=write_small_queries)
    write_t5_tokenizer(folder)
    write_readme(
        folder,
        "A UMT5-like demo checkpoint",
        ["ko", "en"],
        "Random weights in the shape of a UMT5, with a tokenizer trained on a few lines of Korean. It "
        "generates nonsense.",
    )
    return folder


def t5_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Names and shapes of a UMT5's tensors."""
    hidden, ffn, rows = config["d_model"], config["d_ff"], config["vocab_size"]
    inner, gated = config["d_kv"] * config["num_heads"], config["feed_forward_proj"].startswith("gated-")
    shapes: dict[str, Shape] = {"shared.weight": (rows, hidden)}
    for side, layers in (("encoder", config["num_layers"]), ("decoder", config["num_decoder_layers"])):
        attentions = ("SelfAttention", "EncDecAttention")[: 1 + (side == "decoder")]
        for block in range(layers):
            for place, name in enumerate(attentions):
                layer = f"{side}.block.{block}.layer.{place}"
                shapes |= {f"{layer}.{name}.{letter}.weight": (inner, hidden) for letter in "qkv"}
                shapes[f"{layer}.{name}.o.weight"] = (hidden, inner)
                shapes[f"{layer}.layer_norm.weight"] = (hidden,)
            biases = (config["relative_attention_num_buckets"], config["num_heads"])
            shapes[f"{side}.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight"] = biases
            layer = f"{side}.block.{block}.layer.{len(attentions)}"
            for name in ("wi_0", "wi_1") if gated else ("wi",):
                shapes[f"{layer}.DenseReluDense.{name}.weight"] = (ffn, hidden)
            shapes[f"{layer}.DenseReluDense.wo.weight"] = (hidden, ffn)
            shapes[f"{layer}.layer_norm.weight"] = (hidden,)
        shapes[f"{side}.final_layer_norm.weight"] = (hidden,)
    return shapes if config["tie_word_embeddings"] else {**shapes, "lm_head.weight": (rows, hidden)}


def write_small_queries(path: Path, shapes: Mapping[str, Shape], dtype: DType, seed: int) -> None:
    """A safetensors file whose queries are as small as T5 needs them, which divides no scores."""
    import numpy as np
    from safetensors.numpy import save_file

    weights = {}
    for name, shape in shapes.items():
        slabs = [slab.copy() for slab in random_slabs(name, shape, dtype, seed)]
        weights[name] = np.concatenate(slabs).reshape(shape)
        if name.endswith(".q.weight"):
            weights[name] *= np.float32(_QUERIES)
    save_file(weights, path, metadata={"format": "pt"})


def write_t5_tokenizer(folder: Path) -> None:
    """Write a unigram model with T5's special ids, normalized as T5's are, and what stands beside it."""
    data = unigram_sentencepiece(_VOCABULARY, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    (folder / "spiece.model").write_bytes(data)
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    tokens = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(folder, {"tokenizer_config.json": {**settings, **tokens}})
