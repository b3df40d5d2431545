"""What kconv can convert: one family a file (or folder), one entry here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...core.errors import UnsupportedModel
from ..family import AnyFamily
from .exaone4 import EXAONE4
from .gbst import GBSWT5
from .gpt_neox import GPT_NEOX
from .gptj import GPTJ
from .llama import LLAMA
from .mistral import MISTRAL
from .qwen3 import QWEN3
from .qwen3_moe import QWEN3_MOE
from .t5 import MT5, T5, UMT5

FAMILIES: tuple[AnyFamily, ...] = (
    LLAMA,
    MISTRAL,
    GPTJ,
    T5,
    MT5,
    UMT5,
    GBSWT5,
    QWEN3,
    QWEN3_MOE,
    GPT_NEOX,
    EXAONE4,
)
FRONT_ENDS = tuple(family.front_end for family in FAMILIES if family.front_end is not None)

_LATENT_ATTENTION = (
    "models with multi-head latent attention (later EAGLE models of ETRI, 5.4B) are not supported"
)

_ENCODER = (
    "encoders (embeddings, labels) are not supported; llama.cpp's own converter supports this one, and "
    "optimum exports it to ONNX"
)
_ROBERTA = (
    f"{_ENCODER}; llama.cpp's converter takes every tokenizer.json of a RoBERTa for byte-level BPE, which is "
    "wrong for WordPiece (klue/roberta)"
)
_ENCODER_IN_ONNX = (
    "encoders (embeddings, labels) are not supported, nor is this class by llama.cpp's own converter; "
    "optimum exports it to ONNX"
)

# Architectures people try that have no family, and what is known of them (checked in llama.cpp's
# conversion/ and src/models/ as vendored in llama-cpp-python 0.3.36).
NEAR: Mapping[str, str] = {
    "T5EncoderModel": "T5 encoders alone are not supported; llama.cpp's own converter supports them",
    "UMT5EncoderModel": "UMT5 encoders alone are not supported, nor are they by llama.cpp's own converter",
    "BertModel": _ENCODER,
    "BertForMaskedLM": _ENCODER,
    "BertForSequenceClassification": _ENCODER,
    "RobertaModel": _ROBERTA,
    "RobertaForSequenceClassification": _ROBERTA,
    "RobertaForMaskedLM": _ENCODER_IN_ONNX,
    "XLMRobertaModel": _ENCODER,
    "XLMRobertaForSequenceClassification": _ENCODER,
    "XLMRobertaForMaskedLM": _ENCODER_IN_ONNX,
    "DeepseekV2ForCausalLM": _LATENT_ATTENTION,
    "DeepseekV3ForCausalLM": _LATENT_ATTENTION,
    "GPT2LMHeadModel": "GPT-2 (KoGPT2, ko-gpt-trinity) is not supported; llama.cpp's converter supports it",
    "Qwen2ForCausalLM": "Qwen2 is not supported; llama.cpp's own converter supports it",
    "ExaoneForCausalLM": "EXAONE is not supported; llama.cpp's own converter supports it",
}


def family_for(config: Mapping[str, Any]) -> AnyFamily:
    """The family of a checkpoint's ``config.json``; UnsupportedModel lists what there is."""
    classes, near = _classes_of(config)
    family = _known(config)
    if family is not None:
        return family
    class_names = ", ".join(classes) or f"none in architectures (model_type {config.get('model_type')!r})"
    raise _unsupported(class_names, near)


def has_family(config: Mapping[str, Any]) -> bool:
    """Whether ``family_for`` finds one."""
    return _known(config) is not None


def _classes_of(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The classes a config.json names, and what is known of those without a family."""
    named = config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    latent = config.get("kv_lora_rank") is not None
    return classes, [_LATENT_ATTENTION] if latent else [NEAR[name] for name in classes if name in NEAR]


def _known(config: Mapping[str, Any]) -> AnyFamily | None:
    classes, near = _classes_of(config)
    for family in FAMILIES if not near else ():
        matches = any(name in family.hf_classes for name in classes)
        if matches or (not classes and config.get("model_type") == family.name):
            return family
    return None


def reads_with_encoder(arch: str) -> bool:
    """Whether llama.cpp's graph ``arch`` has an encoder that reads the prompt (llama_model_has_encoder)."""
    return any(family.encoder_decoder for family in FAMILIES if family.arch == arch)


def _unsupported(named: str, near: list[str]) -> UnsupportedModel:
    supported = "; ".join(f"{', '.join(family.hf_classes)} ({family.title})" for family in FAMILIES)
    known = "".join(f"\n  note: {text}" for text in near)
    return UnsupportedModel(
        f"unsupported architecture {named[:200]}{known}\n  supported: {supported}",
        hint="`kconv models` shows what is supported and how",
    )
