"""Random GPT-J checkpoints in the layouts KoGPT and EleutherAI publish, and tokenizers of both kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from kconv.converters.samples.korean_text import korean_text

SPECIALS = ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]")
KOGPT: dict[str, Any] = {
    "activation_function": "gelu_new",
    "architectures": ["GPTJForCausalLM"],
    "attn_pdrop": 0,
    "bos_token_id": 0,
    "embd_pdrop": 0,
    "eos_token_id": 1,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gptj",
    "n_embd": 128,
    "n_head": 4,
    "n_inner": None,
    "n_layer": 3,
    "n_positions": 512,
    "resid_pdrop": 0,
    "rotary_dim": 16,
    "tie_word_embeddings": False,
    "tokenizer_class": "PreTrainedTokenizerFast",
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 1200,
}


def random_gptj(folder: Path, *, dtype: str = "float32", weights: str = "bin", **config: Any) -> Path:
    """Save a random GPTJForCausalLM; ``weights`` is ``bin``, with the mask buffers old files have, or
    ``safetensors``. A setting of ``...`` is left out of config.json.
    """
    import torch
    from transformers import GPTJConfig, GPTJForCausalLM

    settings = {key: value for key, value in {**KOGPT, **config}.items() if value is not ...}
    known = {key: value for key, value in settings.items() if value is not None and key != "torch_dtype"}
    if "rotary_dim" in settings and settings["rotary_dim"] is None:
        known["rotary_dim"] = settings["n_embd"] // settings["n_head"]
    torch.manual_seed(0)
    model = GPTJForCausalLM(GPTJConfig(**known))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # initialized to constants, which would hide mistakes
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:  # initialized too small for attention to matter
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[1] ** 0.5)
                parameter.mul_(2 if "_proj" in name else 1)
    state = {name: value.to(getattr(torch, dtype)) for name, value in model.state_dict().items()}
    if settings.get("tie_word_embeddings"):
        state.pop("lm_head.weight")
    folder.mkdir(parents=True, exist_ok=True)
    if weights == "bin":
        mask = torch.tril(torch.ones(settings["n_positions"], settings["n_positions"], dtype=torch.bool))
        for layer in range(settings["n_layer"]):
            state[f"transformer.h.{layer}.attn.bias"] = mask.view(1, 1, *mask.shape)
            state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e9)
        torch.save(state, folder / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")
    return folder


def byte_level_tokenizer(folder: Path, size: int = 1200) -> Path:
    """A tokenizer.json and special_tokens_map.json as KoGPT may have them: byte-level, ``[BOS]`` 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(korean_text(), trainer)
    return _saved(tokenizer, folder)


def character_tokenizer(folder: Path, *, pre_tokenizer: str, size: int = 1200) -> Path:
    """A BPE over characters without byte tokens, spaces as ``metaspace`` or dropped (``whitespace``)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    if pre_tokenizer == "metaspace":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIALS), limit_alphabet=700, show_progress=False
    )
    tokenizer.train_from_iterator(korean_text(), trainer)
    return _saved(tokenizer, folder)


def _saved(tokenizer: Any, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {"bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]", "pad_token": "[PAD]"}
    (folder / "special_tokens_map.json").write_text(json.dumps(roles), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder
