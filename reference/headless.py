"""Models that write no text: what leaves them is the last hidden state, and no matrix makes logits of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import CheckpointError
from ..core.tensor import Tensor
from .empty_model import fitting_weight, names_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


class LastStates:
    """The end of a model without an output matrix; in the place of a ``Tail``."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def entering(self, **inputs: Any) -> torch.Tensor:
        """Run the model; the last hidden states ``(windows, positions, hidden)``."""
        states: torch.Tensor = self._model(**inputs).last_hidden_state
        return states


def embedding_of(model: Any, tensors: Mapping[str, Tensor], where: str) -> Tensor:
    """The embedding of ``model`` as it lies in the checkpoint. Raises CheckpointError."""
    import torch

    embedding = model.get_input_embeddings()
    if not isinstance(embedding, torch.nn.Embedding):
        raise CheckpointError(f"{where}: {type(model).__name__} has no ordinary embedding")
    return fitting_weight(tensors, names_of(model, embedding, "weight"), embedding.weight, where)
