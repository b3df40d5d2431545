"""GGUF keys that follow from the settings most of transformers' classes have, under their common names.

What a class calls otherwise, or computes otherwise, is left out: nothing is claimed of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.model import MetadataValue

_WHOLE = {
    "block_count": ("num_hidden_layers",),
    "context_length": ("max_position_embeddings",),
    "embedding_length": ("hidden_size",),
    "attention.head_count": ("num_attention_heads",),
    "expert_count": ("num_local_experts", "n_routed_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "attention.sliding_window": ("sliding_window",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "expert_shared_count": ("n_shared_experts",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "rope.scaling.original_context_length": ("original_max_position_embeddings",),
}
# Not where keys and values come out of one narrow vector for all heads: llama.cpp sees one head there.
_OF_HEADS = {
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("head_dim",),
}
_REAL = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "attention.scale": ("attention_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "logit_scale": ("logits_scaling", "logit_scale"),
}
_MULTIPLIED_OUT = "attention.key_length_mla"  # older files have kv_b whole, and as many heads as the model
_LATENT, _TURNING_PART = "kv_lora_rank", "qk_rope_head_dim"
# llama.cpp refuses a file whose tensors do not have the shapes these say.
_HELD_BY_SHAPES = frozenset(
    {"feed_forward_length", "expert_feed_forward_length", "expert_shared_feed_forward_length", "vocab_size"}
)
# llama.cpp refuses a file without them, or takes something else, which then has to be right.
_COUNT_IF_MISSING = frozenset(
    {"block_count", "context_length", "embedding_length", "attention.head_count_kv", "attention.key_length"}
    | {"attention.value_length", "rope.freq_base", "rope.dimension_count"}
)
_OF_YARN = {"rope.scaling.yarn_beta_fast": "beta_fast", "rope.scaling.yarn_beta_slow": "beta_slow"}
_ORIGINAL = "original_max_position_embeddings"
_SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear")


def keys_by_config(settings: Any, own: Mapping[str, Any]) -> tuple[dict[str, MetadataValue], tuple[str, ...]]:
    """The keys a file should have, without the architecture's prefix, and which of them are only the file's.

    ``settings`` is transformers' configuration, ``own`` the keys the file has. What config.json does not
    tell is taken from there, so that it agrees; keys llama.cpp has no need of count where the file has them.
    """
    derived = (
        _numbers(settings)
        | _of_more_layers(settings, own)
        | (_of_narrow(settings) if _MULTIPLIED_OUT in own else {})
    )
    right = {key: value for key, value in derived.items() if key in own or key in _COUNT_IF_MISSING}
    scaling = _scaling(settings)
    rest = {key: value for key, value in own.items() if key not in right}
    if scaling is not None:
        rest = {key: value for key, value in rest.items() if key not in _SCALING}
        right |= scaling
    known = {*right, *_HELD_BY_SHAPES, *(_SCALING if scaling is not None else ())}
    return {**rest, **right}, tuple(key for key in own if key not in known)


def _numbers(settings: Any) -> dict[str, MetadataValue]:
    latent = _value(settings, (_LATENT,)) is not None
    whole = _WHOLE if latent else {**_WHOLE, **_OF_HEADS}
    found: dict[str, MetadataValue] = {}
    for key, names in whole.items():
        value = _value(settings, names)
        if type(value) is int and value >= 0:
            found[key] = value
    for key, names in _REAL.items():
        value = _value(settings, names)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[key] = float(value)
    turning = _turning(settings)
    if isinstance(turning.get("rope_theta"), int | float):
        found["rope.freq_base"] = float(turning["rope_theta"])
    near = _turning(settings, "sliding_attention").get("rope_theta")
    if isinstance(near, int | float):
        found["rope.freq_base_swa"] = float(near)
    width, part = _turning_width(settings, latent), turning.get("partial_rotary_factor", 1.0)
    if turning and width and isinstance(part, int | float):
        found["rope.dimension_count"] = int(width * part)
    return found


def _of_more_layers(settings: Any, own: Mapping[str, Any]) -> dict[str, MetadataValue]:
    """The layers, with those that predict further tokens, which llama.cpp counts and config.json does not."""
    layers, more = _value(settings, _WHOLE["block_count"]), own.get("nextn_predict_layers")
    return {"block_count": layers + more} if type(layers) is int and type(more) is int else {}


def _of_narrow(settings: Any) -> dict[str, MetadataValue]:
    """Lengths where keys and values come out of one narrow vector, which llama.cpp sees as its one head."""
    names = (_LATENT, _TURNING_PART, "qk_nope_head_dim", "v_head_dim")
    narrow, turning, plain, values = (_value(settings, (name,)) for name in names)
    if any(type(each) is not int for each in (narrow, turning, plain, values)):
        return {}
    return {
        "attention.head_count_kv": 1,
        "attention.key_length": narrow + turning,
        "attention.value_length": narrow,
        _MULTIPLIED_OUT: plain + turning,
        "attention.value_length_mla": values,
    }


def _turning_width(settings: Any, latent: bool) -> int:
    """Of each head the part that turns; 0 where that is not told."""
    width = _value(settings, (_TURNING_PART,) if latent else ("head_dim",))
    hidden, heads = _value(settings, ("hidden_size",)), _value(settings, ("num_attention_heads",))
    if width is None and not latent and type(hidden) is int and type(heads) is int and heads:
        width = hidden // heads
    return width if type(width) is int else 0


def _value(settings: Any, names: tuple[str, ...]) -> Any:
    values = (getattr(settings, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _turning(settings: Any, layers: str = "full_attention") -> Mapping[str, Any]:
    """What the class says of rotary positions; of those ``layers`` where that depends on their kind."""
    turning = getattr(settings, "rope_parameters", None)
    if not isinstance(turning, Mapping):
        return {}
    if any(isinstance(value, Mapping) for value in turning.values()):
        turning = turning.get(layers)
    return turning if isinstance(turning, Mapping) else {}


def _scaling(settings: Any) -> dict[str, MetadataValue] | None:
    """The keys of scaled positions; None where it is a scaling not told by them alone."""
    turning = _turning(settings)
    kind, factor = turning.get("rope_type"), turning.get("factor", 1.0)
    if kind == "default":
        return {}
    if kind not in ("linear", "yarn") or not isinstance(factor, int | float):
        return None
    keys: dict[str, MetadataValue] = {"rope.scaling.type": str(kind), "rope.scaling.factor": float(factor)}
    for key, name in _OF_YARN.items() if kind == "yarn" else ():
        value = turning.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            keys[key] = float(value)
    original = turning.get(_ORIGINAL)
    if kind == "yarn" and type(original) is int:
        keys["rope.scaling.original_context_length"] = original
    return keys
