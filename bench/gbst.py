"""GBST-KEByT5-large at full size: random weights in float32, 1.23 billion of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from material import Shape
from weights import write_safetensors

from kconv.converters.families.gbst.settings import EMBEDDING, GbstSettings
from kconv.converters.samples.weights import write_json
from kconv.core.tensor import DType

# Sizes of google/byt5-large, whose body KEByT5-large has, and the card's blocks (1, 2, 3, 6, 9) and factor 3.
CONFIG: Mapping[str, Any] = {
    "architectures": ["GBSWT5ForConditionalGeneration"],
    "model_type": "gbswt5",
    "vocab_size": 384,
    "d_model": 1536,
    "d_kv": 64,
    "d_ff": 3840,
    "num_layers": 36,
    "num_decoder_layers": 12,
    "num_heads": 16,
    "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32,
    "layer_norm_epsilon": 1e-06,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "is_encoder_decoder": True,
    "tie_word_embeddings": False,
    "tokenizer_class": "ByT5Tokenizer",
    "subword_blocks": [[1, 0], [2, 0], [3, 0], [6, 0], [9, 0]],
    "downsample_factor": 3,
    "score_consensus_attn": True,
    "gbst_batchnorm": False,
}
_FRONT = GbstSettings((1, 2, 3, 6, 9), 3, consensus=True, norm=False, width=1536, rows=384)


def gbst_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights; the byte embedding stands under its shared name only."""
    hidden, inner, rows = config["d_model"], config["d_ff"], config["vocab_size"]
    attention = config["num_heads"] * config["d_kv"]
    shapes = {name: shape for name, shape in _FRONT.shapes().items() if name != EMBEDDING}
    shapes |= {"shared.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    sides = {
        "encoder": (config["num_layers"], ("SelfAttention",)),
        "decoder": (config["num_decoder_layers"], ("SelfAttention", "EncDecAttention")),
    }
    for side, (layers, attentions) in sides.items():
        table = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        shapes[table] = (config["relative_attention_num_buckets"], config["num_heads"])
        shapes[f"{side}.final_layer_norm.weight"] = (hidden,)
        for layer in range(layers):
            block = f"{side}.block.{layer}.layer"
            for at, name in enumerate(attentions):
                shapes |= {f"{block}.{at}.{name}.{each}.weight": (attention, hidden) for each in "qkv"}
                shapes[f"{block}.{at}.{name}.o.weight"] = (hidden, attention)
            dense = f"{block}.{len(attentions)}.DenseReluDense"
            shapes |= {f"{dense}.wi_{each}.weight": (inner, hidden) for each in (0, 1)}
            shapes[f"{dense}.wo.weight"] = (hidden, inner)
            norms = range(len(attentions) + 1)
            shapes |= {f"{block}.{at}.layer_norm.weight": (hidden,) for at in norms}
    return shapes


def write_weights(folder: Path, shape: Shape, threads: int) -> None:
    """Write config.json and model.safetensors."""
    write_json(folder, {"config.json": {**shape.config, "torch_dtype": "float32"}})
    path = folder / "model.safetensors"
    write_safetensors(path, shape.tensors(shape.config), shape.dtype, 1, threads=threads)


def write_tokenizer(folder: Path) -> None:
    """ByT5's layout, which is names alone."""
    roles = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    write_json(
        folder, {"tokenizer_config.json": {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125, **roles}}
    )


GBST_LARGE = Shape("gbst-kebyt5-large-f32", CONFIG, DType.F32, 1, write_tokenizer, write_weights, gbst_shapes)
