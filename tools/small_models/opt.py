"""A small OPT: ReLU, learned positions that begin at row 2, a tied head, GPT-2's tokenizer files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import byte_bpe, causal, texts

NAME, SEED = "opt", 20220502
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
FIRST = 2  # </s>, in front of every text
VOCABULARY, CONTEXT = 880, 256
TOKENIZER_DOCUMENTS = 5000

# Keys and values as facebook/opt-1.3b has them; the sizes are ours.
CONFIG: dict[str, Any] = {
    "_remove_final_layer_norm": False,
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "do_layer_norm_before": True,
    "dropout": 0.0,
    "eos_token_id": 2,
    "ffn_dim": 512,
    "hidden_size": 128,
    "init_std": 0.02,
    "layerdrop": 0.0,
    "max_position_embeddings": CONTEXT,
    "model_type": "opt",
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "pad_token_id": 1,
    "prefix": "</s>",
    "torch_dtype": "float16",
    "transformers_version": "4.21.0.dev0",
    "use_cache": True,
    "vocab_size": VOCABULARY,
    "word_embed_proj_dim": 128,
}


def new_tokenizer() -> Any:
    """Byte-level BPE with OPT's special tokens in front."""
    return byte_bpe.trained(VOCABULARY, SPECIALS, texts.documents(SEED, causal.ASKED), TOKENIZER_DOCUMENTS)


def new_model() -> Any:
    """The untrained model."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    settings = {
        key: value for key, value in CONFIG.items() if key not in ("torch_dtype", "transformers_version")
    }
    model = OPTForCausalLM(OPTConfig(**settings)).float().train()
    causal.initialize(model, ("out_proj.weight", "fc2.weight"), CONFIG["num_hidden_layers"])
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight.normal_(0.0, 0.05)
        model.model.decoder.embed_positions.weight.normal_(0.0, 0.02)
    return model


optimizers = causal.optimizers
loss = causal.loss


def batches(tokenizer: Any, count: int) -> Iterator[dict[str, Any]]:
    """Rows of CONTEXT ids."""
    return causal.batches(lambda text: tokenizer.encode(text).ids, SEED, CONTEXT, count, FIRST)


def measure(model: Any, tokenizer: Any) -> dict[str, dict[str, float]]:
    """Loss on held-out texts."""
    return causal.measure(model, lambda text: tokenizer.encode(text).ids, CONTEXT, FIRST)


def show(model: Any, tokenizer: Any) -> str:
    """What the model says to the prompt."""
    return causal.show(model, tokenizer, FIRST)


def stored(tensor: Any) -> Any:
    """A weight as the file holds it: float16."""
    import torch

    return tensor.to(torch.float16)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """pytorch_model.bin without a head of its own, and the tokenizer's files as OPT has them."""
    import torch

    state = {name: stored(tensor).contiguous() for name, tensor in model.state_dict().items()}
    del state["lm_head.weight"]
    torch.save(dict(sorted(state.items())), folder / "pytorch_model.bin")
    byte_bpe.save(tokenizer, folder)
    roles = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "</s>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles), encoding="utf-8")
    settings = {"errors": "replace", **roles, "add_prefix_space": False, "add_bos_token": True}
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
