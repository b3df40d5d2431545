"""The text part of a model that also sees or hears: the rest is left out, unless the text depends on it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ...core.checkpoint import Checkpoint
from ...core.errors import UnsupportedModel
from ...core.input_files import quoted
from .wanted import Wanted, listed, noted, without

TEXT_PART = "text_part_of"
"""The key the rule of classes leaves in a configuration for this one, which takes it out."""


_OTHERS = frozenset({TEXT_PART, "vision_config", "audio_config"})
# By what they are called where config.json is the text part's own.
_NAMED = re.compile(
    r"(model\.)?(vision_tower|vision_model|vision_encoder|visual|multi_modal_projector|mm_projector|"
    r"vision_projector|audio_tower|audio_encoder|audio_projector|embed_vision|embed_audio|image_newline)(\..*)?"
)


def without_other_parts(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Without the tensors of other parts. Raises UnsupportedModel where the text's layers need them."""
    unknown = [name for name in checkpoint.tensors if not wanted.knows(name)]
    if _OTHERS.isdisjoint(checkpoint.config):
        named = [name for name in unknown if _NAMED.fullmatch(name)]
        return _left_out(checkpoint, named)
    config = {key: value for key, value in checkpoint.config.items() if key != TEXT_PART}
    checkpoint = replace(checkpoint, config=config)
    inside = [name for name in unknown if wanted.in_a_layer(name)]
    if inside:
        raise UnsupportedModel(
            f"{checkpoint.folder}: layers of the text part hold tensors that {wanted.family.title} models do "
            f"not have: {listed(inside)}; they depend on what the model sees or hears, so the text alone "
            "would be another model",
            hint="use llama.cpp's own converter (convert_hf_to_gguf.py), if it supports the model",
        )
    return _left_out(checkpoint, unknown)


def _left_out(checkpoint: Checkpoint, unknown: Sequence[str]) -> Checkpoint:
    if not unknown:
        return checkpoint
    parts = Counter(".".join(name.split(".")[:2]) for name in unknown)
    some = ", ".join(f"{quoted(part)[1:-1]} ({count})" for part, count in parts.most_common(6))
    more = f" and {len(parts) - 6} more parts" if len(parts) > 6 else ""
    message = f"{len(unknown)} tensors that are not the text part's are left out: {some}{more}"
    return noted(without(checkpoint, unknown), "other-parts", message)
