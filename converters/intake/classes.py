"""What config.json calls the model: the class that writes text where a base class or a wrapper stands.

And the text part of models that also see or hear.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.input_files import quoted
from ..families import FAMILIES, NEAR, has_family
from .other_parts import TEXT_PART
from .wanted import noted

PARTS = ("text_config", "language_config", "llm_config", "language_model_config")
# Of the whole model, where its text part does not say.
_SHARED = ("tie_word_embeddings", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "torch_dtype")
_HEADED = re.compile(r"(WithLMHeadModel|LMHeadModel|ForCausalLM|ForConditionalGeneration)$")
_WRAPPERS = frozenset(
    {"OptimizedModule", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine"}
    | {"PeftModel", "PeftModelForCausalLM", "AutoModelForCausalLMWithValueHead", "AutoModelForCausalLM"}
)


def with_known_class(checkpoint: Checkpoint) -> Checkpoint:
    """With a config.json that names the class a family is for, where it means that one."""
    config = checkpoint.config
    if has_family(config):
        return checkpoint
    if (meant := _meant(config)) is not None:
        named, new = _class(config), _class(meant)
        message = f"config.json names the class {quoted(named)[1:-1]}; the model is read as {new}"
        return noted(replace(checkpoint, config=meant), "base-class", message)
    for part in PARTS:
        inner = config.get(part)
        if not isinstance(inner, dict):
            continue
        text = {**{key: config[key] for key in _SHARED if key in config and inner.get(key) is None}, **inner}
        text = {key: value for key, value in text.items() if value is not None or key not in _SHARED}
        found = text if has_family(text) else _meant(text)
        if found is not None:
            message = (
                f"of {quoted(_class(config))[1:-1]} only the text part is converted, as config.json "
                f"describes it in {part}"
            )
            return noted(replace(checkpoint, config={**found, TEXT_PART: part}), "text-part", message)
    return checkpoint


def _class(config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    return str(named[0]) if isinstance(named, list) and named else str(config.get("model_type"))


def _meant(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """config.json with the class of a family that its own class is the base or a wrapper of."""
    named = config.get("architectures")
    classes = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if any(name in NEAR for name in classes) or config.get("kv_lora_rank") is not None:
        return None
    for family in FAMILIES:
        for headed in family.hf_classes:
            bases = {_HEADED.sub("", headed) + "Model", f"FSDP{headed}", f"{headed}WithValueHead"}
            wrapped = config.get("model_type") == family.name and not _WRAPPERS.isdisjoint(classes)
            part = config.get("model_type") == f"{family.name}_text" and not classes
            if wrapped or part or not bases.isdisjoint(classes):
                return {**config, "architectures": [headed]}
    return None
