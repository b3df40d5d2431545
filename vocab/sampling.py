"""Sampling that a checkpoint's own files or its model card recommend.

It travels in the GGUF as ``general.sampling.*`` (llama.cpp src/llama-arch.cpp), from where llama.cpp's tools
and ``kconv run`` take their defaults.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..core.model import MetadataValue
from ..core.vocabulary import Vocab
from .context import AdapterContext
from .templates import DOT42_TOKENS, format_of_template


@dataclass(frozen=True)
class Sampling:
    """Recommended values; None where nothing is recommended and the runtime's default stands.

    ``stop`` are texts that end an answer, ``max_tokens`` how many tokens to generate at most. ``source`` says
    who recommends it.
    """

    source: str
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()


# From the cards and programs of the models. Where one calls transformers' generate without top_k, temperature
# or repetition penalty, transformers' own defaults of 50, 1.0 and 1.0 are part of what it recommends.
_DOT42 = Sampling(
    "42dot LLM's README",
    temperature=0.5,
    top_k=20,
    top_p=0.95,
    repeat_penalty=1.2,
    max_tokens=512,
)
_BY_NAME: tuple[tuple[re.Pattern[str], Sampling], ...] = (
    (
        re.compile(r"(?<![a-z0-9])(eagle|egpt)-[0-9.]+b(?![a-z0-9])", re.IGNORECASE),
        Sampling("EAGLE's card", temperature=1.0, top_k=50, top_p=0.9, max_tokens=256),
    ),
    (
        re.compile(r"(?<![a-z0-9])(kakaobrain[/_-]+kogpt|kogpt-?6b)", re.IGNORECASE),
        Sampling("KoGPT's card", temperature=0.8, top_k=50, max_tokens=128),
    ),
)

# Field, generation_config.json's name, GGUF key, smallest and largest value that makes sense.
_FIELDS = (
    ("temperature", "temperature", "general.sampling.temp", 0.0, 10.0),
    ("top_k", "top_k", "general.sampling.top_k", 0, 1 << 20),
    ("top_p", "top_p", "general.sampling.top_p", 0.0, 1.0),
    ("min_p", "min_p", "general.sampling.min_p", 0.0, 1.0),
    ("repeat_penalty", "repetition_penalty", "general.sampling.penalty_repeat", 0.1, 10.0),
)

_KINDS = {field.name: int if str(field.type).startswith("int") else float for field in fields(Sampling)}


def recommended_sampling(context: AdapterContext, vocab: Vocab) -> Sampling | None:
    """What generation_config.json says, and the model's card where it says nothing; None if neither does."""
    card = _of_card(context, vocab)
    recommended = _of_file(context.generation_config)
    prompt_format = format_of_template(vocab.chat_template)
    stop = prompt_format.stop if prompt_format is not None else ()
    if not recommended:
        if card is not None:
            return replace(card, stop=stop)
        return Sampling("prompt format", stop=stop) if stop else None
    source = "generation_config.json" + (f" and {card.source}" if card is not None else "")
    return replace(card or Sampling(""), source=source, stop=stop, **recommended)


def _of_card(context: AdapterContext, vocab: Vocab) -> Sampling | None:
    if vocab.ids.keys() >= DOT42_TOKENS:
        return _DOT42
    for pattern, sampling in _BY_NAME:
        if any(pattern.search(name) for name in context.names.values()):
            return sampling
    return None


def _of_file(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Sensible values of generation_config.json; none where it says not to sample."""
    if generation.get("do_sample") is False:
        return {}
    values: dict[str, Any] = {}
    for name, theirs, _, low, high in _FIELDS:
        value = generation.get(theirs)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            continue
        if low <= value <= high:
            values[name] = _KINDS[name](value)
    return values


def sampling_metadata(sampling: Sampling | None) -> dict[str, MetadataValue]:
    """The GGUF keys of a recommendation."""
    if sampling is None:
        return {}
    values = ((key, getattr(sampling, name)) for name, _, key, _, _ in _FIELDS)
    return {key: value for key, value in values if value is not None}


def sampling_in_metadata(metadata: Mapping[str, Any]) -> dict[str, float | int]:
    """What a GGUF's own keys recommend, by the names of Sampling's fields; senseless values left out."""
    values: dict[str, float | int] = {}
    for name, _, key, low, high in _FIELDS:
        value = metadata.get(key)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            # float32 in the file: 0.95 comes back as 0.949999988...
            values[name] = _KINDS[name](round(value, 6))
    return values
