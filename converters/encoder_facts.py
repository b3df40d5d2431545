"""What BERT and its relatives share: facts, rows and keys of an encoder that writes no text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.checkpoint import Checkpoint
from ..core.errors import UnsupportedModel
from ..core.input_files import quoted
from ..core.model import MetadataValue, Note
from .activation_names import GELU, NOT_IN_LLAMA_CPP, TANH_GELU, refuse_unless_in_onnx
from .family import Row, Transform
from .pooling import pooling_of
from .positions import gelu_remarks, layer_norm_keys, refuse_set
from .settings import Settings

TABLE = "embeddings.word_embeddings.weight"
PLACES = "embeddings.position_embeddings.weight"
TYPES = "embeddings.token_type_embeddings.weight"


@dataclass(frozen=True)
class EncoderFacts:
    """An encoder as BERT is one: every layer is normed behind its additions.

    Positions begin at row ``offset`` of their table, whose ``context`` rows from there on are used; ``types``
    is how many kinds of segments there are.
    """

    where: str
    layers: int
    hidden: int
    heads: int
    ffn: int
    rows: int
    context: int
    types: int
    epsilon: float
    activation: str
    offset: int = 0

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes; ``places`` are the rows of the table of positions."""
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "ffn": self.ffn,
            "rows": self.rows,
            "types": self.types,
            "places": self.context + self.offset,
            "offset": self.offset,
        }


def read_encoder(settings: Settings, *, epsilon: float, types: int, offset: int = 0) -> EncoderFacts:
    """The facts, with what the class takes where config.json is silent. Raises CheckpointError."""
    for key, wanted, why in (
        ("position_embedding_type", "absolute", "positions that are learned, one row each, are supported"),
        ("is_decoder", False, "encoders are supported"),
        ("add_cross_attention", False, "encoders by themselves are supported"),
    ):
        refuse_set(settings, key, wanted, why)
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if hidden % heads:
        raise settings.refuse("hidden_size", hidden, f"a multiple of num_attention_heads {heads}")
    places = settings.integer("max_position_embeddings", 512)
    if places <= offset:
        raise settings.refuse("max_position_embeddings", places, f"more than pad_token_id + 1, {offset}")
    return EncoderFacts(
        where=settings.where,
        layers=settings.integer("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        ffn=settings.integer("intermediate_size"),
        rows=settings.integer("vocab_size"),
        context=places - offset,
        types=settings.integer("type_vocab_size", types),
        epsilon=settings.real("layer_norm_eps", epsilon),
        activation=settings.text("hidden_act", "gelu"),
        offset=offset,
    )


def encoder_keys(facts: EncoderFacts) -> dict[str, MetadataValue]:
    """What llama.cpp's bert graph reads. It always adds the first row of token_types."""
    return {
        **layer_norm_keys(facts),
        "attention.causal": False,
        "tokenizer.ggml.token_type_count": facts.types,
    }


def pooling_keys(facts: EncoderFacts, checkpoint: Checkpoint) -> Mapping[str, MetadataValue]:
    """How a text's vector is made, where the folder says so."""
    return pooling_of(checkpoint).keys


def encoder_rows(places: Transform | None = None) -> tuple[Row, ...]:
    """The tensors; ``places`` is done to the table of positions."""
    layer: list[Row] = []
    for target, source, shape in (
        ("attn_q", "attention.self.query", ("hidden", "hidden")),
        ("attn_k", "attention.self.key", ("hidden", "hidden")),
        ("attn_v", "attention.self.value", ("hidden", "hidden")),
        ("attn_output", "attention.output.dense", ("hidden", "hidden")),
        ("attn_output_norm", "attention.output.LayerNorm", ("hidden",)),
        ("ffn_up", "intermediate.dense", ("ffn", "hidden")),
        ("ffn_down", "output.dense", ("hidden", "ffn")),
        ("layer_output_norm", "output.LayerNorm", ("hidden",)),
    ):
        name = f"encoder.layer.{{i}}.{source}"
        layer.append(Row(f"blk.{{i}}.{target}.weight", (f"{name}.weight",), shape))
        layer.append(Row(f"blk.{{i}}.{target}.bias", (f"{name}.bias",), shape[:1]))
    return (
        Row("token_embd.weight", (TABLE,), ("rows", "hidden")),
        Row("position_embd.weight", (PLACES,), ("places", "hidden"), places),
        Row("token_types.weight", (TYPES,), ("types", "hidden")),
        Row("token_embd_norm.weight", ("embeddings.LayerNorm.weight",), ("hidden",)),
        Row("token_embd_norm.bias", ("embeddings.LayerNorm.bias",), ("hidden",)),
        *layer,
    )


DROPPED = (
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    *(f"pooler.dense.{part}" for part in ("weight", "bias")),  # of the next-sentence task
    *(f"cls.predictions.{part}" for part in ("bias", "decoder.weight", "decoder.bias")),
    *(f"cls.predictions.transform.dense.{part}" for part in ("weight", "bias")),
    *(f"cls.predictions.transform.LayerNorm.{part}" for part in ("weight", "bias")),
    *(f"cls.seq_relationship.{part}" for part in ("weight", "bias")),
    *(f"lm_head.{part}" for part in ("bias", "weight", "decoder.weight", "decoder.bias")),
    *(f"lm_head.{part}.{each}" for part in ("dense", "layer_norm") for each in ("weight", "bias")),
)
"""Tensors of the tasks such models are trained by, which make no embeddings."""


def no_flags(facts: EncoderFacts, checkpoint: Checkpoint) -> frozenset[str]:
    """Nothing depends on anything."""
    return frozenset()


def limits_of_llama_cpp(facts: EncoderFacts) -> None:
    """Raises UnsupportedModel for what the bert graph does not compute."""
    if facts.activation not in GELU | TANH_GELU:
        raise UnsupportedModel(
            f"{facts.where}: hidden_act is {quoted(facts.activation)}; llama.cpp's bert graph supports only "
            "GELU",
            hint=NOT_IN_LLAMA_CPP,
        )


def limits_of_onnx(facts: EncoderFacts) -> None:
    """Raises UnsupportedModel for activations kconv has no graph of."""
    refuse_unless_in_onnx(facts.activation, f"{facts.where}: hidden_act")


def type_remarks(facts: EncoderFacts) -> tuple[Note, ...]:
    """What llama.cpp leaves out of a model with segments, and its GELU."""
    notes = gelu_remarks(facts)
    if facts.types > 1:
        message = (
            "llama.cpp takes every text for a first segment (token type 0), as sentence embeddings do; pairs "
            "of texts need ONNX"
        )
        notes = (*notes, Note("token-types", message))
    return notes
