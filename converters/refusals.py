"""What is said of a model that no family is for: why, and what works instead.

What is known of single classes comes first (``NEAR``), then whether llama.cpp's own converter takes the
class, then what kind of model transformers says it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.errors import UnsupportedModel
from .family import AnyFamily
from .known_classes import CONVERTED, KINDS

_CONVERTER = "llama.cpp's own converter takes it: python convert_hf_to_gguf.py FOLDER --outfile FILE.gguf"
_THEN_VERIFY = "; kconv verify FILE.gguf --against FOLDER then proves that file"
LATENT_ATTENTION = (
    "models with multi-head latent attention (Kanana 2 30B-A3B, later EAGLE models of ETRI, DeepSeek) are "
    "not supported by kconv; llama.cpp computes them in its deepseek2 graph"
)
_NO_GRAPH = "stock llama.cpp has no graph that computes it"
_TRANSFORMERS = "run it with transformers or vLLM"
_MISREAD = "so that its files are wrong"
_OPTIMUM = "export it with optimum: optimum-cli export onnx"

# Classes, and what is known of them; checked in llama.cpp's conversion/ and src/models/ as vendored in
# llama-cpp-python 0.3.36. Not asked for classes that have a family.
_KNOWN: tuple[tuple[str, str], ...] = (
    (
        "DeepseekV2ForCausalLM DeepseekV3ForCausalLM",
        f"{LATENT_ATTENTION}",
    ),
    (
        "SolarOpenForCausalLM",
        "Solar Open 100B: llama.cpp computes it (glm4moe), kconv has no family for it",
    ),
    (
        "SolarOpen2ForCausalLM",
        f"Solar Open 2: {_NO_GRAPH}; {_TRANSFORMERS}",
    ),
    (
        "ExaoneMoeForCausalLM ExaoneMoEForCausalLM",
        "K-EXAONE (mixture of experts): llama.cpp computes it (exaone-moe), kconv has no family for it",
    ),
    (
        "Exaone4_5_ForConditionalGeneration",
        "EXAONE 4.5 (pictures and text): llama.cpp computes its text part, kconv has no family for it",
    ),
    (
        "GptOssForCausalLM",
        "gpt-oss (experts in MXFP4): llama.cpp computes it, kconv has no family for it; ready GGUF files "
        "are on the Hub",
    ),
    (
        "Qwen3_5ForCausalLM Qwen3_5MoeForCausalLM Qwen3_5ForConditionalGeneration "
        "Qwen3_5MoeForConditionalGeneration",
        "Qwen3.5 (partly linear attention): llama.cpp computes it, kconv has no family for it",
    ),
    (
        "Qwen3NextForCausalLM",
        "Qwen3-Next (partly linear attention): llama.cpp computes it, kconv has no family for it",
    ),
    (
        "Gemma4ForConditionalGeneration Gemma4ForCausalLM",
        "Gemma 4: llama.cpp computes it, kconv has no family for it",
    ),
    (
        "MotifForCausalLM",
        f"Motif (differential attention, PolyNorm): {_NO_GRAPH}, and its code comes with the checkpoint; "
        f"{_TRANSFORMERS} with trust_remote_code, if you trust it",
    ),
    (
        "AXK1ForCausalLM",
        f"A.X K1 (a norm on the experts' output that deepseek2 lacks): {_NO_GRAPH}; {_TRANSFORMERS}",
    ),
    (
        "AXK2ForCausalLM",
        f"A.X K2 (gated sparse attention): {_NO_GRAPH}, SK Telecom's GGUF files need their branch of "
        f"llama.cpp; {_TRANSFORMERS}",
    ),
    (
        "HyperCLOVAXVisionV2ForConditionalGeneration",
        f"HyperCLOVA X SEED Think 32B sees pictures: {_NO_GRAPH}; {_TRANSFORMERS}",
    ),
    (
        "MosaicGPT",
        "MosaicGPT (mpt-1b-redpajama) is code of the checkpoint's own, which kconv never runs; the later "
        "MPT models (MptForCausalLM) are supported",
    ),
    (
        "DebertaModel DebertaForMaskedLM DebertaV2Model DebertaV2ForMaskedLM "
        "DebertaV2ForSequenceClassification",
        f"DeBERTa (relative attention, kf-deberta): {_NO_GRAPH}; {_OPTIMUM}",
    ),
)

NEAR: Mapping[str, str] = {name: text for names, text in _KNOWN for name in names.split()}
"""What is known of a class without a family."""

_OF_HEAD: Mapping[str, tuple[str, str]] = {
    "ForSequenceClassification": ("scores (rerankers, classifiers, reward models)", "text-classification"),
    "ForRewardModel": ("scores (reward models)", "text-classification"),
    "ForTokenClassification": ("a label for each token", "token-classification"),
    "ForQuestionAnswering": ("where in a text an answer is", "question-answering"),
    "ForMultipleChoice": ("which of several texts fits", "multiple-choice"),
}
"""What classes with another head give for a text, and optimum's name of that task, by how they are called."""

_OF_KIND: Mapping[str, str] = {
    "text": f"{_NO_GRAPH}, and kconv has no family for it; {_TRANSFORMERS}",
    "encoder": f"an encoder that neither kconv nor llama.cpp's converter knows; {_OPTIMUM}",
    "sequence-to-sequence": "of encoder-decoders llama.cpp computes the T5 family only; "
    f"{_TRANSFORMERS}, or {_OPTIMUM}",
    "vision-language": "it takes pictures or sound besides text, and llama.cpp's converter does not know it; "
    f"{_TRANSFORMERS}",
    "speech": "a model of speech or sound, and kconv converts language models only; whisper.cpp runs "
    f"Whisper, for others {_OPTIMUM}",
    "image": f"a model of pictures, and kconv converts language models only; {_OPTIMUM}",
}
_UNKNOWN = (
    "neither kconv nor llama.cpp's own converter knows it; what runs it should stand on the model's card"
)


def refusal(config: Mapping[str, Any], families: Sequence[AnyFamily]) -> UnsupportedModel:
    """The error for a config.json that is of none of ``families``: a screen at most."""
    classes = classes_of(config)
    kind = config.get("model_type")
    kind = kind[:80] if isinstance(kind, str) else None
    named = ", ".join(classes)[:200] or f"none in architectures (model_type {kind!r})"
    lines = [f"unsupported architecture {named}", *(f"  {line}" for line in _reasons(config, families))]
    lines.append(f"  supported: {', '.join(dict.fromkeys(family.title for family in families))}")
    return UnsupportedModel("\n".join(lines), hint="`kconv models` shows what is supported and how")


def classes_of(config: Mapping[str, Any]) -> list[str]:
    """The classes a config.json names."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def near(config: Mapping[str, Any]) -> list[str]:
    """What is known of the single classes, and of models with latent attention whatever their class."""
    named = [NEAR[name] for name in classes_of(config) if name in NEAR]
    latent = config.get("kv_lora_rank") is not None
    return list(dict.fromkeys(named)) or ([LATENT_ATTENTION] if latent else [])


def _reasons(config: Mapping[str, Any], families: Sequence[AnyFamily]) -> list[str]:
    classes, kind = classes_of(config), config.get("model_type")
    known = KINDS.get(kind) if isinstance(kind, str) else None
    lines = near(config) or _of_head(classes, known)
    if any(name in CONVERTED for name in classes) and not any(_MISREAD in line for line in lines):
        proven = known == "text" and not config.get("auto_map")
        lines.append(_CONVERTER + (_THEN_VERIFY if proven else ""))
    if config.get("auto_map") and known is None and not lines:
        lines.append("its code comes with the checkpoint (auto_map), which kconv never runs")
    if not lines:
        lines.append(_OF_KIND.get(known or "", _UNKNOWN))
    similar = _similar(classes, kind, families) if known is None else []
    if similar:
        lines.append(f"similar names that are supported: {', '.join(similar)}")
    return lines


def _of_head(classes: Sequence[str], known: str | None) -> list[str]:
    """What to do with a model that gives scores or labels, whatever it is made of."""
    heads = [head for name in classes for head in _OF_HEAD if name.endswith(head)]
    if not heads:
        return []
    gives, task = _OF_HEAD[heads[0]]
    if known == "encoder":
        why = "kconv converts encoders that embed texts"
        ranks = any(name in CONVERTED for name in classes)
        runs = ["llama-server --reranking runs what llama.cpp's converter makes of it"] if ranks else []
    else:
        why = "kconv converts the same models where they write text"
        runs = [_TRANSFORMERS]
    return [f"it gives {gives}: {why}; for ONNX {_OPTIMUM} --task {task}", *runs]


def _similar(classes: Sequence[str], kind: Any, families: Sequence[AnyFamily]) -> list[str]:
    """Supported classes with nearly the same name, whatever stands behind ``For``."""
    supported = {name.partition("For")[0].casefold(): name for each in families for name in each.hf_classes}
    given = [name.partition("For")[0] for name in classes] or [kind.replace("_", "")] * isinstance(kind, str)
    found = [
        supported[each]
        for name in given
        for each in difflib.get_close_matches(name[:100].casefold(), supported, 2, 0.75)
    ]
    return list(dict.fromkeys(found))[:3]
