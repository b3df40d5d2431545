"""What kconv can convert: one family a file (or folder), one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..family import AnyFamily
from ..refusals import NEAR, classes_of, refusal
from .bert import BERT
from .exaone import EXAONE
from .exaone4 import EXAONE4
from .gbst import GBSWT5
from .gemma import GEMMA2, GEMMA3
from .gpt2 import GPT2
from .gpt_neox import GPT_NEOX
from .gptj import GPTJ
from .hyperclovax import HYPERCLOVAX
from .llama import LLAMA
from .mistral import MISTRAL
from .mpt import MPT
from .opt import OPT
from .qwen2 import QWEN2
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE
from .roberta import ROBERTA
from .t5 import MT5, MT5_ENCODER, T5, T5_ENCODER, UMT5, UMT5_ENCODER
from .xglm import XGLM
from .xlm_roberta import XLM_ROBERTA

__all__ = ["FAMILIES", "FRONT_ENDS", "NEAR", "embeds_texts", "family_for", "has_family", "reads_with_encoder"]

FAMILIES: tuple[AnyFamily, ...] = (
    LLAMA,
    MISTRAL,
    GPTJ,
    T5,
    MT5,
    UMT5,
    GBSWT5,
    QWEN2,
    QWEN3,
    QWEN3_MOE,
    GPT_NEOX,
    EXAONE,
    EXAONE4,
    HYPERCLOVAX,
    GEMMA2,
    GEMMA3,
    GPT2,
    MPT,
    OPT,
    XGLM,
    BERT,
    ROBERTA,
    T5_ENCODER,
    MT5_ENCODER,
    UMT5_ENCODER,
    XLM_ROBERTA,
)
FRONT_ENDS = tuple(family.front_end for family in FAMILIES if family.front_end is not None)


def family_for(config: Mapping[str, Any]) -> AnyFamily:
    """The family of a checkpoint's ``config.json``; UnsupportedModel says why there is none."""
    family = _known(config)
    if family is not None:
        return family
    raise refusal(config, FAMILIES)


def has_family(config: Mapping[str, Any]) -> bool:
    """Whether ``family_for`` finds one."""
    return _known(config) is not None


def _known(config: Mapping[str, Any]) -> AnyFamily | None:
    classes = classes_of(config)
    if config.get("kv_lora_rank") is not None:  # whatever the class: no family computes it
        return None
    for family in FAMILIES:
        matches = any(name in family.hf_classes for name in classes)
        if matches or (not classes and config.get("model_type") == family.name):
            return family.instead(config) or family
    return None


def reads_with_encoder(arch: str) -> bool:
    """Whether llama.cpp's graph ``arch`` has an encoder that reads the prompt (llama_model_has_encoder)."""
    return any(family.encoder_decoder for family in FAMILIES if family.arch == arch)


def embeds_texts(arch: str) -> bool:
    """Whether llama.cpp's graph ``arch`` is that of encoders alone, which write no text."""
    return any(family.encoder_only for family in FAMILIES if family.arch == arch)
