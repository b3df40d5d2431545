"""What of T5s the runtimes compute: kinds of feed-forward layers, distances, depths."""

from __future__ import annotations

from ...core.errors import UnsupportedModel
from ...core.input_files import quoted
from ..activations import NOT_IN_LLAMA_CPP, RELU, TANH_GELU, refuse_unless_in_onnx
from ..recipe import Sizes
from ..settings import Settings

_MAX_DISTANCE = 128  # llama_relative_position_bucket, llama-graph.cpp
_MOST_DISTANCE = 1 << 16  # ONNX graphs hold a table of all distances


def max_distance(settings: Settings) -> int:
    """The distance from which on all keys are equally far."""
    distance = settings.integer("relative_attention_max_distance", _MAX_DISTANCE)
    if distance > _MOST_DISTANCE:
        raise settings.refuse("relative_attention_max_distance", distance, f"at most {_MOST_DISTANCE}")
    return distance


def feed_forward(settings: Settings) -> tuple[bool, str]:
    """Whether the feed-forward layers are gated, and the name of their activation."""
    known = "gated-gelu" if settings.text("model_type", "t5") == "mt5" else "relu"
    kind = settings.text("feed_forward_proj", known)
    gated = settings.flag("is_gated_act", kind.startswith("gated-"))
    function = "gelu_new" if kind == "gated-gelu" else kind.rpartition("-")[2]
    return gated, settings.text("dense_act_fn", function)  # a key of its own counts, as in transformers


def limits_of_llama_cpp(settings: Settings, sizes: Sizes) -> None:
    """Raises UnsupportedModel for what its t5 graph does not compute."""
    if sizes["decoder_layers"] > sizes["layers"]:
        raise UnsupportedModel(
            f"{settings.where}: the decoder has {sizes['decoder_layers']} layers, more than the encoder's "
            f"{sizes['layers']}; llama.cpp keeps room for as many as the encoder has and ends the process",
            hint=NOT_IN_LLAMA_CPP,
        )
    if max_distance(settings) != _MAX_DISTANCE:
        raise UnsupportedModel(
            f"{settings.where}: relative_attention_max_distance is {max_distance(settings)}; llama.cpp's t5 "
            f"graph has {_MAX_DISTANCE} built in",
            hint=NOT_IN_LLAMA_CPP,
        )
    gated, function = feed_forward(settings)
    if function not in (TANH_GELU if gated else RELU):
        raise UnsupportedModel(
            f"{settings.where}: the feed-forward layers are {'gated' if gated else 'not gated'} with "
            f"{quoted(function)} (feed_forward_proj {quoted(settings.values.get('feed_forward_proj'))}); "
            "llama.cpp's t5 graph computes gated ones with the tanh approximation of GELU and ungated ones "
            "with ReLU",
            hint=NOT_IN_LLAMA_CPP,
        )


def limits_of_onnx(settings: Settings, sizes: Sizes) -> None:
    """Raises UnsupportedModel for what kconv's graphs do not compute."""
    refuse_unless_in_onnx(feed_forward(settings)[1], f"{settings.where}: the feed-forward layers' activation")
