"""A small random encoder of a T5, which makes embeddings of texts as sentence-t5 does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .encoders import write_pooling
from .umt5 import t5_shapes, write_small_queries, write_t5_tokenizer
from .weights import write_checkpoint, write_readme

_BIAS = "relative_attention_bias.weight"


def write_t5_encoder(
    folder: Path,
    *,
    seed: int = 0,
    pooling: str = "mean",
    kind: str = "T5",
    own_biases: bool = False,
    **changes: Any,
) -> Path:
    """Write an encoder alone, by default a T5's with gated layers, all texts pooled and normalized.

    ``folder`` must not exist yet; ``kind`` begins the class's name (a UMT5 has ``own_biases`` in every
    block), ``changes`` are to config.json. Without ``pooling`` there are hidden states only.
    """
    config: dict[str, Any] = {
        "architectures": [f"{kind}EncoderModel"],
        "model_type": kind.lower(),
        "vocab_size": 1216,
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 224,
        "num_layers": 3,
        "num_heads": 6,
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "feed_forward_proj": "gated-gelu",
        "is_encoder_decoder": True,
        "n_positions": 512,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        **changes,
    }
    folder.mkdir(parents=True)
    whole = t5_shapes({**config, "num_decoder_layers": 0, "tie_word_embeddings": True})
    biased = "encoder." if own_biases else "encoder.block.0."
    shapes = {
        name: shape
        for name, shape in whole.items()
        if not name.startswith("decoder.") and (not name.endswith(_BIAS) or name.startswith(biased))
    }
    write_checkpoint(folder, config, seed=seed, shapes=shapes, writer=write_small_queries)
    write_t5_tokenizer(folder)
    if pooling:
        write_pooling(folder, config["d_model"], pooling, normalized=True)
    write_readme(
        folder,
        "A sentence-t5-like demo checkpoint",
        ["ko", "en"],
        "Random weights in the shape of a T5's encoder, with a tokenizer trained on a few lines of Korean.",
    )
    return folder
