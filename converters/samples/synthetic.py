"""Small checkpoints in the layout of a family, with random weights and a tokenizer trained on the spot.

They are for trying tools and for tests. Nothing in them comes from the families' published files; names,
ids, keys and file layout follow what their cards and configurations say in public.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core.tensor import DType
from .tokenizer_files import byte_fallback_tokenizer, tiktoken_style_tokenizer
from .weights import WeightFormat, write_checkpoint, write_json, write_readme


def write_eagle(
    folder: Path,
    *,
    dtype: DType = DType.BF16,
    shards: int = 1,
    weight_format: WeightFormat = "safetensors",
    seed: int = 0,
    vocab_size: int = 2500,
) -> Path:
    """Write an EAGLE-like checkpoint: byte-fallback BPE that splits digits, BOS and EOS both ``</s>``.

    ``folder`` must not exist yet.
    """
    folder.mkdir(parents=True)
    tokenizer = byte_fallback_tokenizer(vocab_size)
    size = len(tokenizer["model"]["vocab"])
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": size,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 2,
        "eos_token_id": 2,
    }
    roles = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    write_json(
        folder,
        {
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "model_max_length": 2048,
                "clean_up_tokenization_spaces": False,
                **roles,
            },
            "special_tokens_map.json": roles,
            "generation_config.json": {"bos_token_id": 2, "eos_token_id": 2},
        },
    )
    write_checkpoint(folder, config, dtype=dtype, shards=shards, seed=seed, weight_format=weight_format)
    write_readme(
        folder,
        "An EAGLE-like demo checkpoint",
        ("ko", "en"),
        "Layout: `LlamaForCausalLM` with a byte-fallback BPE tokenizer that splits digits; the "
        "beginning and the end of a text are both `</s>`, and `<unk>` serves as padding.",
    )
    return folder


def write_llama_3_ko(
    folder: Path,
    *,
    dtype: DType = DType.BF16,
    shards: int = 2,
    weight_format: WeightFormat = "safetensors",
    seed: int = 0,
    base_vocab: int = 1800,
    rope_scaling: bool = False,
    pairs: bool = True,
) -> Path:
    """Write a checkpoint like Llama-3-Ko-8B-Instruct-AOG: tiktoken-style BPE, GQA 4:1, rope_theta 500000.

    As in the original, config.json and generation_config.json still name the special ids of Llama 2
    (1, 2, 2), which are ordinary tokens here. ``rope_scaling`` adds Llama 3.1's; ``pairs`` writes merges
    as pairs, as tokenizers 0.20 and later do, otherwise as strings. ``folder`` must not exist yet.
    """
    folder.mkdir(parents=True)
    tokenizer = tiktoken_style_tokenizer(base_vocab, pairs=pairs)
    added = {token["content"]: token for token in tokenizer["added_tokens"]}
    stale = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": len(tokenizer["model"]["vocab"]) + len(added),
        "hidden_size": 256,
        "intermediate_size": 896,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": _LLAMA_3_1_ROPE if rope_scaling else None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "use_cache": True,
        **stale,
    }
    end = "<|end_of_text|>"
    roles = {"bos_token": "<|begin_of_text|>", "eos_token": end, "pad_token": end}
    write_json(
        folder,
        {
            "tokenizer.json": tokenizer,
            "tokenizer_config.json": {
                "added_tokens_decoder": {
                    str(token["id"]): {key: value for key, value in token.items() if key != "id"}
                    for token in added.values()
                },
                "clean_up_tokenization_spaces": True,
                "model_input_names": ["input_ids", "attention_mask"],
                "model_max_length": 8192,
                "tokenizer_class": "PreTrainedTokenizerFast",
                **roles,
            },
            "special_tokens_map.json": roles,
            "generation_config.json": {"_from_model_config": True, "do_sample": True, **stale},
        },
    )
    write_checkpoint(folder, config, dtype=dtype, shards=shards, seed=seed, weight_format=weight_format)
    write_readme(
        folder,
        "A Llama-3-Ko-like demo checkpoint",
        ("ko", "en"),
        "Layout: `LlamaForCausalLM` with grouped heads (4:1), rope_theta 500000 and a byte-level BPE "
        "tokenizer with Llama 3's pattern and special tokens. config.json names special ids that do "
        "not belong to this vocabulary, as in the family's published files.",
    )
    return folder


_LLAMA_3_1_ROPE: Mapping[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
