"""What llama.cpp's graphs are known to compute otherwise than transformers' classes, told by the settings."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ..core.language import phrase
from .family import Departure

_SECTIONS = ("rope_scaling", "rope_parameters")


def departure_by_config(settings: Any) -> Departure | None:
    """What a model of those ``settings``, transformers' configuration, differs by; None of most.

    ggml rounds the first and the last dimension of YaRN's ramp down and up (ggml.c,
    ggml_rope_yarn_corr_dims) and has no switch for it; gpt-oss's config.json has ``truncate: false``.
    """
    turning = getattr(settings, "rope_parameters", None)
    if not isinstance(turning, Mapping) or not any(map(_not_truncated, (turning, *turning.values()))):
        return None
    what = phrase(
        "rounds the ends of YaRN's ramp to whole dimensions, which config.json rules out (truncate)"
    )
    return Departure(what, partial(_truncated, _with_truncated(turning)))


def _not_truncated(section: Any) -> bool:
    yarn = isinstance(section, Mapping) and section.get("rope_type") == "yarn"
    return yarn and section.get("truncate") is False


def _with_truncated(section: Any) -> Any:
    """With ``truncate`` where it is ruled out, also in the sections of kinds of layers."""
    if not isinstance(section, Mapping):
        return section
    parts = {key: _with_truncated(value) for key, value in section.items()}
    return {**parts, "truncate": True} if _not_truncated(section) else parts


def _truncated(turning: Mapping[str, Any], config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the class made of its settings counts, whichever of the two sections they came from."""
    rest = {key: value for key, value in config.items() if key not in _SECTIONS}
    return {**rest, "rope_parameters": dict(turning)}
