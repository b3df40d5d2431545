"""What config.json says of decoder-only models, under the names most of transformers' classes use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import UnsupportedModel
from ..core.input_files import quoted
from ..core.model import MetadataValue, Note
from .activation_names import NOT_IN_LLAMA_CPP, refuse_unless_in_onnx
from .rope import Rope, read_rope
from .settings import Settings
from .transforms import same_weights

HEAD = "head"
"""The flag of models whose output matrix is their own and not the embedding."""


@dataclass(frozen=True)
class DecoderFacts:
    """A decoder-only transformer.

    ``heads`` query heads of ``head_dim`` share ``kv_heads`` keys and values; ``ffn`` is the width of the
    feed-forward layers, ``rows`` that of the vocabulary, ``context`` the trained length. ``activation`` is
    transformers' name of it, ``tied`` what config.json says of the head.
    """

    where: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rows: int
    context: int
    epsilon: float
    activation: str
    rope: Rope
    tied: bool

    @property
    def sizes(self) -> Mapping[str, int]:
        """The words of shapes."""
        return {
            "layers": self.layers,
            "hidden": self.hidden,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "ffn": self.ffn,
            "rows": self.rows,
        }


@dataclass(frozen=True)
class Defaults:
    """What a class of transformers takes where config.json is silent; None: it is asked for, or follows.

    ``stretched`` says that the family takes YaRN and LongRoPE (``read_rope``).
    """

    context: int
    epsilon: float
    head_dim: int | None = None
    kv_heads: int | None = None
    stretched: bool = False


def read_decoder(settings: Settings, defaults: Defaults) -> dict[str, Any]:
    """The fields of ``DecoderFacts``, by Llama's names. Raises CheckpointError, UnsupportedModel."""
    hidden, heads = settings.integer("hidden_size"), settings.integer("num_attention_heads")
    if defaults.head_dim is None and "head_dim" not in settings and hidden % heads:
        raise settings.refuse("hidden_size", hidden, f"a multiple of num_attention_heads {heads}")
    head_dim = settings.integer("head_dim", defaults.head_dim or hidden // heads)
    if head_dim % 2:
        raise settings.refuse("head_dim", head_dim, "an even number (rotary embedding pairs dimensions)")
    kv_heads = settings.integer("num_key_value_heads", defaults.kv_heads or heads)
    if heads % kv_heads:
        raise settings.refuse("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads {heads}")
    context = settings.integer("max_position_embeddings", defaults.context)
    return {
        "where": settings.where,
        "layers": settings.integer("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "ffn": settings.integer("intermediate_size"),
        "rows": settings.integer("vocab_size"),
        "context": context,
        "epsilon": settings.real("rms_norm_eps", defaults.epsilon),
        "activation": settings.text("hidden_act", "silu"),
        "rope": read_rope(settings, head_dim, context=context, stretched=defaults.stretched),
        "tied": settings.flag("tie_word_embeddings"),
    }


def decoder_keys(facts: DecoderFacts) -> dict[str, MetadataValue]:
    """The GGUF keys all graphs with RMS norms read (llama_model_base::load_hparams, llama-model.cpp)."""
    return {
        "block_count": facts.layers,
        "context_length": facts.context,
        "embedding_length": facts.hidden,
        "feed_forward_length": facts.ffn,
        "attention.head_count": facts.heads,
        "attention.head_count_kv": facts.kv_heads,
        "attention.layer_norm_rms_epsilon": facts.epsilon,
        "attention.key_length": facts.head_dim,
        "attention.value_length": facts.head_dim,
        "rope.freq_base": facts.rope.base,
        "rope.dimension_count": facts.rope.dimensions,
        "vocab_size": facts.rows,
        **facts.rope.scaling_keys(),
    }


def head_flags(facts: DecoderFacts, checkpoint: Checkpoint, embedding: str, head: str) -> frozenset[str]:
    """``HEAD`` where the output matrix is its own; one that only repeats the embedding is tied.

    Weights count, whatever config.json says: transformers writes tied of models that are not. Reads the two
    matrices where both are there.
    """
    own, shared = checkpoint.tensors.get(head), checkpoint.tensors.get(embedding)
    tied = facts.tied and (own is None or shared is None or same_weights(own, shared))
    return frozenset() if tied else frozenset({HEAD})


def decoder_notes(facts: DecoderFacts, flags: frozenset[str]) -> tuple[Note, ...]:
    """What there is to say of positions and of a head that config.json calls tied."""
    notes = facts.rope.notes()
    if HEAD in flags and facts.tied:
        message = (
            "config.json ties lm_head to the embedding, but lm_head.weight differs: kept as a separate matrix"
        )
        notes = (*notes, Note("untied-head", message, warning=True))
    return notes


def refuse_other_activations(
    facts: DecoderFacts, known: frozenset[str], what: str, key: str = "hidden_act"
) -> None:
    """Raise UnsupportedModel unless the activation is among those ``known``.

    ``what`` goes on after "llama.cpp's": ``llama graph computes silu only``.
    """
    if facts.activation not in known:
        raise UnsupportedModel(
            f"{facts.where}: {key} is {quoted(facts.activation)}; llama.cpp's {what}",
            hint=NOT_IN_LLAMA_CPP,
        )


def refuse_biases(settings: Settings, *keys: str) -> None:
    """Raise UnsupportedModel where one of ``keys`` is true: biases no published model of the class has."""
    for key in keys:
        if settings.flag(key):
            raise UnsupportedModel(
                f"{settings.where}: {key} is true; kconv does not support these biases, which no published "
                "model of this class has",
                hint="open an issue with the model's name if you need it",
            )


def refuse_divided_frequencies(facts: DecoderFacts, graph: str) -> None:
    """Raise UnsupportedModel for scalings whose frequencies are given one by one, where ``graph`` reads none.

    Those are Llama 3.1's, LongRoPE, and YaRN with other numbers than llama.cpp's own.
    """
    rope = facts.rope
    refuse_longrope(facts, graph)
    if rope.divisors is None:
        return
    other = " with beta_fast, beta_slow or truncate of its own" if rope.scaling == "yarn" else ""
    raise UnsupportedModel(
        f"{facts.where}: rope scaling {rope.scaling!r}{other}, which llama.cpp's {graph} graph does not "
        "support",
        hint=NOT_IN_LLAMA_CPP,
    )


def refuse_longrope(facts: DecoderFacts, graph: str) -> None:
    """Raise UnsupportedModel for LongRoPE, whose two sets of frequencies ``graph`` does not read."""
    if facts.rope.stretch is not None and facts.rope.stretch.long is not None:
        raise UnsupportedModel(
            f"{facts.where}: rope scaling 'longrope', which llama.cpp's {graph} graph does not support",
            hint=NOT_IN_LLAMA_CPP,
        )


def refuse_activations_onnx_lacks(facts: DecoderFacts, key: str = "hidden_act") -> None:
    """Raise UnsupportedModel unless kconv has the activation in ONNX."""
    refuse_unless_in_onnx(facts.activation, f"{facts.where}: {key}")
