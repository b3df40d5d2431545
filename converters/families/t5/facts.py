"""What config.json says of a T5, and what of it the runtimes compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....core.errors import UnsupportedModel
from ....core.input_files import quoted
from ...activation_names import NOT_IN_LLAMA_CPP, RELU, TANH_GELU, refuse_unless_in_onnx
from ...settings import Settings

_MAX_DISTANCE = 128  # llama_relative_position_bucket, llama-graph.cpp
_MOST_DISTANCE = 1 << 16  # ONNX graphs hold a table of all distances
_FEWEST_BUCKETS = 4  # with fewer a side has no exact bucket


@dataclass(frozen=True)
class T5Facts:
    """A T5, mT5, UMT5 or the body of a GBST T5.

    ``max_distance`` is that from which on all keys are equally far, ``projection`` config.json's word for the
    feed-forward layers. ``scaled``: the decoder's output is multiplied by hidden^-0.5 before the head.
    ``start`` is the token the decoder begins with, ``start_named`` whether config.json names it;
    ``positions`` the trained length, where config.json has one. ``kv_heads`` is a word of GBST T5 alone.
    ``own_biases``: every block has relative biases of its own, where a T5's blocks share those of the first.
    """

    where: str
    layers: int
    decoder_layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    buckets: int
    rows: int
    max_distance: int
    epsilon: float
    gated: bool
    activation: str
    projection: object
    tied: bool
    scaled: bool
    start: int
    start_named: bool
    positions: int | None
    own_biases: bool

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes."""
        return {
            "layers": self.layers,
            "decoder_layers": self.decoder_layers,
            "hidden": self.hidden,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "ffn": self.ffn,
            "buckets": self.buckets,
            "rows": self.rows,
        }


def read_facts(
    settings: Settings,
    *,
    usual: str = "relu",
    scale_key: str | None = "scale_decoder_outputs",
    own_biases: bool = False,
) -> T5Facts:
    """Read a config.json.

    ``usual`` is the kind of feed-forward layer where it names none, ``scale_key`` the flag that says whether
    the decoder's output is scaled (by default if the head is tied), None for classes that never scale.
    Raises CheckpointError for what makes no sense.
    """
    layers = settings.either("num_layers", "num_hidden_layers")
    distance = _max_distance(settings)
    buckets, most = settings.integer("relative_attention_num_buckets", 32), 2 * distance - 1
    if not _FEWEST_BUCKETS <= buckets <= most:  # with more, exact ones reach beyond the farthest distance
        raise settings.refuse(
            "relative_attention_num_buckets", buckets, f"a number from {_FEWEST_BUCKETS} to {most}"
        )
    gated, activation = _feed_forward(settings, usual)
    tied = settings.flag("tie_word_embeddings", True)
    heads = settings.either("num_heads", "num_attention_heads")
    return T5Facts(
        where=settings.where,
        layers=layers,
        decoder_layers=settings.integer("num_decoder_layers", layers),
        hidden=settings.either("d_model", "hidden_size"),
        heads=heads,
        kv_heads=settings.integer("kv_heads", heads),
        head_dim=settings.either("d_kv", "head_dim"),
        ffn=settings.integer("d_ff"),
        buckets=buckets,
        rows=settings.integer("vocab_size"),
        max_distance=distance,
        epsilon=settings.real("layer_norm_epsilon", 1e-6),
        gated=gated,
        activation=activation,
        projection=settings.values.get("feed_forward_proj"),
        tied=tied,
        scaled=scale_key is not None and settings.flag(scale_key, tied),
        start=_decoder_start(settings),
        start_named="decoder_start_token_id" in settings,
        positions=settings.integer("n_positions") if "n_positions" in settings else None,
        own_biases=own_biases,
    )


def _max_distance(settings: Settings) -> int:
    distance = settings.integer("relative_attention_max_distance", _MAX_DISTANCE)
    if distance > _MOST_DISTANCE:
        raise settings.refuse("relative_attention_max_distance", distance, f"at most {_MOST_DISTANCE}")
    return distance


def _feed_forward(settings: Settings, usual: str) -> tuple[bool, str]:
    """Whether the feed-forward layers are gated, and the name of their activation."""
    kind = settings.text("feed_forward_proj", usual)
    gated = settings.flag("is_gated_act", kind.startswith("gated-"))
    function = "gelu_new" if kind == "gated-gelu" else kind.rpartition("-")[2]
    return gated, settings.text("dense_act_fn", function)  # a key of its own counts, as in transformers


def _decoder_start(settings: Settings) -> int:
    """The token the decoder begins with: padding where the key is missing, as T5 was trained."""
    key = "decoder_start_token_id" if "decoder_start_token_id" in settings else "pad_token_id"
    start = settings.integer(key, 0, least=0)
    if start >= settings.integer("vocab_size"):
        raise settings.refuse(key, start, "the id of a token, less than vocab_size")
    return start


def limits_of_llama_cpp(facts: T5Facts) -> None:
    """Raises UnsupportedModel for what its t5 graph does not compute."""
    if facts.decoder_layers > facts.layers:
        raise UnsupportedModel(
            f"{facts.where}: the decoder has {facts.decoder_layers} layers, more than the encoder's "
            f"{facts.layers}; llama.cpp supports at most as many as the encoder has and aborts otherwise",
            hint=NOT_IN_LLAMA_CPP,
        )
    limits_of_encoders(facts, "t5")


def limits_of_encoders(facts: T5Facts, graph: str) -> None:
    """Raises UnsupportedModel for what neither the encoder's nor the decoder's part computes."""
    if facts.max_distance != _MAX_DISTANCE:
        raise UnsupportedModel(
            f"{facts.where}: relative_attention_max_distance is {facts.max_distance}; llama.cpp's "
            f"{graph} graph only supports {_MAX_DISTANCE}",
            hint=NOT_IN_LLAMA_CPP,
        )
    if facts.activation not in (TANH_GELU if facts.gated else RELU):
        raise UnsupportedModel(
            f"{facts.where}: the feed-forward layers are {'gated' if facts.gated else 'not gated'} "
            f"with {quoted(facts.activation)} (feed_forward_proj {quoted(facts.projection)}); "
            f"llama.cpp's {graph} graph supports only gated layers with the tanh approximation of GELU and "
            "ungated layers with ReLU",
            hint=NOT_IN_LLAMA_CPP,
        )


def limits_of_onnx(facts: T5Facts) -> None:
    """Raises UnsupportedModel for what kconv's graphs do not compute."""
    refuse_unless_in_onnx(facts.activation, f"{facts.where}: the feed-forward layers' activation")
