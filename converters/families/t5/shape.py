"""What the graphs of a T5 are made from: its facts, and the names its matrices go by in a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ....core.checkpoint import Checkpoint
from ....core.errors import CheckpointError
from ...onnx.graph import Graph
from ...transforms import same_weights
from .facts import T5Facts

# One matrix embeds for both sides; which of its names a file keeps depends on what wrote it.
EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
HEAD = "lm_head.weight"

OWN_HEAD, SCALED_HEAD = "own head", "own head, scaled"  # flags

# Lengths as optimum calls them. With buffers bound beforehand, as on CUDA, it computes the length of a result
# from its name, word by word (optimum/onnxruntime/base.py).
BATCH, SOURCE = "batch_size", "encoder_sequence_length"
TARGET, PAST = "decoder_sequence_length", "past_decoder_sequence_length"
TOTAL = f"{PAST} + {TARGET}"


class EncoderFront(Protocol):
    """What stands before the encoder in place of a look-up; the body's graphs only need to know this much.

    ``embedding`` is the checkpoint's name of the table it looks ids up in, ``factor`` how many ids become one
    position of the encoder.
    """

    @property
    def embedding(self) -> str: ...

    @property
    def factor(self) -> int: ...

    def embedded(self, graph: Graph, values: str, mask: str) -> tuple[str, str]:
        """Embedded ids ``(batch, length, hidden)`` and mask to what enters the encoder, and its mask."""
        ...

    def resized_mask(self, graph: Graph, mask: str) -> str:
        """The mask of ids ``(batch, length)`` to that of the encoder's positions."""
        ...


@dataclass(frozen=True)
class T5Shape:
    """``embedding`` and ``head`` are names of tensors, one name where the head is the embedding."""

    facts: T5Facts
    embedding: str
    head: str
    front: EncoderFront | None = None

    @property
    def positions(self) -> str:
        """The name of the length of what the encoder returns."""
        factor = 1 if self.front is None else self.front.factor
        return SOURCE if factor == 1 else f"( {SOURCE} + {factor - 1} ) // {factor}"


def shape_of(facts: T5Facts, flags: frozenset[str], front: EncoderFront | None = None) -> T5Shape:
    """The shape by the family's flags, which name the embedding and say whether the head is its own."""
    names = EMBEDDINGS if front is None else (*EMBEDDINGS, front.embedding)
    embedding = next(name for name in names if name in flags)
    own = not flags.isdisjoint((OWN_HEAD, SCALED_HEAD))
    return T5Shape(facts, embedding, HEAD if own else embedding, front)


def encoder_shape(facts: T5Facts, flags: frozenset[str]) -> T5Shape:
    """That of an encoder by itself, which has no head."""
    embedding = next(name for name in EMBEDDINGS if name in flags)
    return T5Shape(facts, embedding, "")


def embedding_name(checkpoint: Checkpoint) -> str:
    """The name the embedding is read under. Raises CheckpointError where copies of it differ."""
    there = [name for name in EMBEDDINGS if name in checkpoint.tensors]
    for name in there[1:]:
        if checkpoint.aliases.get(name) in there or checkpoint.aliases.get(there[0]) == name:
            continue
        if not same_weights(checkpoint.tensors[there[0]], checkpoint.tensors[name]):
            raise CheckpointError(
                f"{checkpoint.folder}: {name} differs from {there[0]}; T5 shares one embedding "
                "between encoder and decoder",
                hint="find out which one the model was trained with and remove the other",
            )
    return there[0] if there else EMBEDDINGS[0]
