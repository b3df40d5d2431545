"""What kconv can convert: one recipe a file, one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import UnsupportedModel
from ..recipe import Recipe
from .gbswt5 import GBSWT5
from .gptj import GPTJ
from .llama import LLAMA
from .t5 import MT5, T5

RECIPES: tuple[Recipe, ...] = (LLAMA, GPTJ, T5, MT5, GBSWT5)

_LATENT_ATTENTION = "models with multi-head latent attention (later EAGLE models of ETRI, 5.4B) are no Llama"

# Architectures people try that have no recipe, and what is known of them (checked in llama.cpp's
# conversion/ and src/models/ as vendored in llama-cpp-python 0.3.36).
NEAR: Mapping[str, str] = {
    "GPTNeoXForCausalLM": "GPT-NeoX (egpt-1.3b-preview, polyglot-ko) is not supported yet; "
    "llama.cpp's own converter takes GPT-NeoX with a byte-level tokenizer",
    "UMT5ForConditionalGeneration": "UMT5 (a relative bias in every layer) is not supported; llama.cpp's own "
    "converter takes it",
    "T5EncoderModel": "T5 encoders alone are not supported; llama.cpp's own converter takes them",
    "DeepseekV2ForCausalLM": _LATENT_ATTENTION,
    "DeepseekV3ForCausalLM": _LATENT_ATTENTION,
    "GPT2LMHeadModel": "GPT-2 (KoGPT2, ko-gpt-trinity) is not supported; llama.cpp's own converter takes it",
    "MistralForCausalLM": "Mistral is not supported; llama.cpp's own converter takes it",
    "Qwen2ForCausalLM": "Qwen2 is not supported; llama.cpp's own converter takes it",
    "ExaoneForCausalLM": "EXAONE is not supported; llama.cpp's own converter takes it",
}


def recipe_for(config: Mapping[str, Any]) -> Recipe:
    """The recipe of a checkpoint's ``config.json``; UnsupportedModel lists what there is."""
    named = config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    near = [NEAR[name] for name in classes if name in NEAR]
    if config.get("kv_lora_rank") is not None:
        near = [_LATENT_ATTENTION]
    for recipe in RECIPES if not near else ():
        matches = any(name in recipe.hf_classes for name in classes)
        if matches or (not classes and config.get("model_type") == recipe.name):
            return recipe
    said = ", ".join(classes) or f"none in architectures (model_type {config.get('model_type')!r})"
    raise _unsupported(said, near)


def _unsupported(said: str, near: list[str]) -> UnsupportedModel:
    supported = "; ".join(f"{', '.join(recipe.hf_classes)} ({recipe.title})" for recipe in RECIPES)
    known = "".join(f"\n  known of it: {text}" for text in near)
    return UnsupportedModel(
        f"no recipe for the architecture {said[:200]}{known}\n  supported: {supported}",
        hint="`kconv models` shows what is supported and how",
    )
