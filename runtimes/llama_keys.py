"""The keys llama.cpp reads for an architecture, what it takes for missing ones, and what wrong ones do.

Read off llama_model_base::load_hparams (src/llama-model.cpp) and the architecture's load_arch_hparams
(src/models/*.cpp) of llama.cpp as of llama-cpp-python 0.3.36. Names are without the architecture in front;
``tokens`` among the values is the number of tokens in the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..core.language import phrase

Kind = Literal["whole", "real", "flag", "text", "list"]
Values = Mapping[str, Any]


class Required:
    """In place of a default: llama.cpp refuses a file without the key."""


REQUIRED = Required()


@dataclass(frozen=True)
class Key:
    """``default`` is what llama.cpp takes where the key is missing, possibly from other keys.

    ``harm`` continues "the file says … where the checkpoint says …: ". ``layers``: may be a list, one value a
    layer. ``grave`` is false for keys that change nothing llama.cpp computes or says: programs show them, or
    limit texts by them. docs/en/prove.md has the table for people.
    """

    name: str
    kind: Kind
    default: Callable[[Values], Any] | int | float | bool | str | Required
    harm: str
    layers: bool = False
    grave: bool = True


def _head_width(values: Values) -> Any:
    width, heads = values.get("embedding_length"), values.get("attention.head_count")
    heads = heads[0] if isinstance(heads, tuple) and heads else heads
    return width // heads if type(width) is int and type(heads) is int and heads > 0 else 0


def _expert_width(values: Values) -> Any:
    width, used = values.get("feed_forward_length"), values.get("expert_used_count")
    return width // used if type(width) is int and type(used) is int and used > 0 else 0


def _same_as(name: str, otherwise: Callable[[Values], Any] = lambda values: 0) -> Callable[[Values], Any]:
    return lambda values: values[name] if name in values else otherwise(values)


_HEADS = phrase("attention heads are split at the wrong places, and the model generates nonsense")
_SHAPE = phrase("the tensors do not have this shape, and llama.cpp refuses the file")
_EXPERTS = phrase(
    "experts are missing or chosen wrongly, and llama.cpp refuses the file or computes something else"
)

_COMMON = (
    Key("block_count", "whole", REQUIRED, phrase("layers are skipped or missing")),
    Key(
        "context_length",
        "whole",
        REQUIRED,
        phrase("every token is computed as before, but programs end texts earlier or later than in training"),
        grave=False,
    ),
    Key("embedding_length", "whole", REQUIRED, _SHAPE),
    Key("embedding_length_out", "whole", _same_as("embedding_length"), _SHAPE),
    Key("feed_forward_length", "whole", 0, _SHAPE, layers=True),
    Key("attention.head_count", "whole", 0, _HEADS, layers=True),
    Key("attention.head_count_kv", "whole", _same_as("attention.head_count"), _HEADS, layers=True),
    Key("attention.key_length", "whole", _head_width, _HEADS),
    Key("attention.value_length", "whole", _head_width, _HEADS),
    Key(
        "rope.dimension_count",
        "whole",
        _same_as("attention.key_length", _head_width),
        phrase("the wrong dimensions are rotated"),
    ),
    Key(
        "rope.freq_base", "real", 10000.0, phrase("positions rotate too fast or slowly, breaking long texts")
    ),
    Key("rope.scaling.attn_factor", "real", 1.0, phrase("attention is not scaled as in training")),
    Key("attention.causal", "flag", True, phrase("tokens would attend to later ones")),
    Key(
        "pooling_type", "whole", 0, phrase("it only matters to programs that ask for embeddings"), grave=False
    ),
    Key("nextn_predict_layers", "whole", 0, phrase("the last layers would not be run")),
    Key("expert_count", "whole", 0, _EXPERTS),
    Key("expert_used_count", "whole", 0, _EXPERTS, layers=True),
    Key("expert_group_count", "whole", 0, _EXPERTS),
    Key("expert_group_used_count", "whole", 0, _EXPERTS),
)

_RMS, _LAYER_NORM = "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"
_EPSILON = phrase("every layer normalizes slightly differently, most where activations are small")
_STRETCHED = phrase("positions are stretched otherwise than in training")
_WINDOW = phrase("layers see further back, or less far, than in training")


# Keys only some graphs read: they count where the checkpoint's family writes them.
_SOME = (
    Key(_RMS, "real", REQUIRED, _EPSILON),
    Key(_LAYER_NORM, "real", REQUIRED, _EPSILON),
    Key(
        "rope.scaling.original_context_length",
        "whole",
        _same_as("context_length"),
        _STRETCHED,
    ),
    # Read by few graphs; where they are, the runtime part tells.
    Key("rope.scaling.yarn_beta_fast", "real", 32.0, _STRETCHED, grave=False),
    Key("rope.scaling.yarn_beta_slow", "real", 1.0, _STRETCHED, grave=False),
    Key("vocab_size", "whole", _same_as("tokens"), phrase("it is only displayed"), grave=False),
    Key("attention.sliding_window", "whole", 4096, _WINDOW),
    Key("attention.sliding_window_pattern", "list", REQUIRED, _WINDOW),
    Key("expert_feed_forward_length", "whole", _expert_width, _SHAPE, layers=True),
    Key("decoder_block_count", "whole", _same_as("block_count"), phrase("layers are skipped or missing")),
    Key("decoder_start_token_id", "whole", -1, phrase("answers begin with the wrong token")),
)
# Other keys that T5 files have, which their graph does not read.
_BESIDE_RMS = (Key(_LAYER_NORM, "real", _same_as(_RMS), phrase("it is only displayed"), grave=False),)


def keys_of(right: Values) -> tuple[Key, ...]:
    """The keys llama.cpp reads for an architecture whose right values are those."""
    some = (*_SOME, *_BESIDE_RMS) if _RMS in right else _SOME
    return (*_COMMON, *{key.name: key for key in some if key.name in right}.values())


# Keys llama.cpp knows but does not read for these graphs, with the values that mean nothing. Other programs,
# and other versions, may read them.
UNREAD: Mapping[str, tuple[Any, ...]] = {
    "attention.scale": (0.0,),
    "attention.output_scale": (0.0, 1.0),
    "attention.value_scale": (0.0, 1.0),
    "attention.sliding_window": (0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.temperature_scale": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "use_parallel_residual": (False,),
    "expert_weights_scale": (0.0, 1.0),
    "rope.scaling.alpha": (0.0,),
    "rope.scaling.finetuned": (False,),
    "rope.scaling.original_context_length": (),
    "rope.scaling.yarn_ext_factor": (-1.0, 0.0),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
}


def rope_scaling(values: Values) -> tuple[str, float]:
    """Kind and factor of the scaling of positions, ``("none", 1.0)`` where nothing is scaled.

    ``linear`` is what llama.cpp takes without a type, ``rope.scale_linear`` the older name of the factor, and
    a factor of 0 means 1. Types have been checked.
    """
    kind: str = values.get("rope.scaling.type", "linear")
    factor: float = values.get("rope.scaling.factor", values.get("rope.scale_linear", 0.0)) or 1.0
    return ("none", 1.0) if kind == "none" or (kind == "linear" and factor == 1.0) else (kind, factor)
