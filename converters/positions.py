"""Models with LayerNorm, most of them without rotary positions: facts, keys and notes they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import UnsupportedModel
from ..core.model import MetadataValue, Note
from .activation_names import GELU
from .rope import Rope
from .settings import Settings

if TYPE_CHECKING:
    from .decoder_facts import DecoderFacts
    from .encoder_facts import EncoderFacts

NO_ROPE = Rope(base=1.0, dimensions=0)
"""Stands in DecoderFacts for models in which nothing turns."""
_MOST_POSITIONS = 1 << 17  # a table of so many rows is beyond every published model


def unrotated(settings: Settings, hidden: int, heads: int, context: int, heads_key: str) -> dict[str, Any]:
    """The fields of ``DecoderFacts`` that follow from these. Raises CheckpointError."""
    if hidden % heads:
        raise settings.refuse(heads_key, heads, f"a divisor of the width {hidden}")
    if context > _MOST_POSITIONS:
        raise settings.refuse("the number of positions", context, f"at most {_MOST_POSITIONS}")
    sizes = {"hidden": hidden, "heads": heads, "kv_heads": heads, "head_dim": hidden // heads}
    return {"where": settings.where, **sizes, "context": context, "rope": NO_ROPE}


def layer_norm_keys(facts: DecoderFacts | EncoderFacts) -> dict[str, MetadataValue]:
    """The GGUF keys all graphs with LayerNorm read; nothing of positions."""
    return {
        "block_count": facts.layers,
        "context_length": facts.context,
        "embedding_length": facts.hidden,
        "feed_forward_length": facts.ffn,
        "attention.head_count": facts.heads,
        "attention.layer_norm_epsilon": facts.epsilon,
    }


def gelu_remarks(facts: DecoderFacts | EncoderFacts) -> tuple[Note, ...]:
    """What there is to say of llama.cpp's GELU where the model has the exact one."""
    if facts.activation not in GELU:
        return ()
    message = (
        "the model uses the exact GELU, llama.cpp the tanh approximation; the difference is far "
        "smaller than the loss of quantization, and the proof measures it"
    )
    return (Note("gelu", message),)


def refuse_set(settings: Settings, key: str, wanted: object, why: str) -> None:
    """Raise UnsupportedModel where config.json says anything of ``key`` but ``wanted`` or nothing."""
    value = settings.values.get(key)
    if value is not None and value != wanted:
        raise UnsupportedModel(
            f"{settings.where}: {key} is {str(value)[:60]}; {why}",
            hint="open an issue with the model's name if you need it",
        )
