"""What the graphs of a T5 are made from: its sizes and names, read from a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from ...core.checkpoint import Checkpoint
from ..architectures import recipe_for
from ..architectures.t5 import EMBEDDINGS, HEAD, embedding_name, scales, sizes
from ..architectures.t5_limits import feed_forward, max_distance
from ..gbst.settings import EMBEDDING, GbstSettings, read_settings
from ..gbst.tensors import front_end_model
from ..settings import Settings
from ..transforms import same_weights

# Lengths as optimum calls them. With buffers bound beforehand, as on CUDA, it computes the length of a result
# from its name, word by word (optimum/onnxruntime/base.py).
BATCH, SOURCE = "batch_size", "encoder_sequence_length"
TARGET, PAST = "decoder_sequence_length", "past_decoder_sequence_length"
TOTAL = f"{PAST} + {TARGET}"


@dataclass(frozen=True)
class T5Shape:
    """What a description needs to know of a T5.

    ``embedding`` and ``head`` are names of tensors, one name where the head is the embedding. ``scaled`` says
    that what enters the head is multiplied by hidden^-0.5, ``front`` are the settings of a GBST front end.
    """

    layers: int
    decoder_layers: int
    hidden: int
    heads: int
    head_dim: int
    rows: int
    max_distance: int
    epsilon: float
    gated: bool
    activation: str
    embedding: str
    head: str
    scaled: bool
    front: GbstSettings | None

    @property
    def positions(self) -> str:
        """The name of the length of what the encoder returns."""
        factor = 1 if self.front is None else self.front.factor
        return SOURCE if factor == 1 else f"( {SOURCE} + {factor - 1} ) // {factor}"


def read_shape(checkpoint: Checkpoint) -> T5Shape:
    """What config.json and the tensors say.

    Of a GBST front end it reads the weights, some 12 MB, to refuse what a conversion to GGUF refuses. Raises
    CheckpointError, UnsupportedModel and MappingError.
    """
    settings, held = Settings(checkpoint.config, "config.json"), checkpoint.tensors
    front = None
    if recipe_for(checkpoint.config).name == "gbswt5":
        front_end_model(checkpoint)  # refuses two embeddings that differ, a norm of negative variance
        front = read_settings(settings, held)
    embedding = embedding_name(checkpoint) if any(name in held for name in EMBEDDINGS) else EMBEDDING
    own = HEAD in held and not same_weights(held[HEAD], held[embedding])
    gated, activation = feed_forward(settings)
    words, taken = sizes(settings), ("layers", "decoder_layers", "hidden", "heads", "head_dim", "rows")
    return T5Shape(
        **{word: words[word] for word in taken},
        max_distance=max_distance(settings),
        epsilon=settings.real("layer_norm_epsilon", 1e-6),
        gated=gated,
        activation=activation,
        embedding=embedding,
        head=HEAD if own else embedding,
        scaled=scales(settings),
        front=front,
    )
