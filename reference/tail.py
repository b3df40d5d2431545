"""The end of transformers' model: what enters its output matrix, and what its class does to the logits after.

The output matrix is multiplied by kconv itself, in slices (reading.py). Some classes cap or scale what comes
out of it; their own code does that, run with everything before it left out.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from .encoder_decoder import has_encoder
from .stand_ins import resting

if TYPE_CHECKING:
    import torch

_PROBE = (-1000.0, -1.0, 0.5, 300.0)


class Tail:
    """Takes the place of a model's output matrix."""

    def __init__(self, model: Any) -> None:
        import torch

        self._model = model
        self._entered: torch.Tensor | None = None
        place = torch.nn.Identity()
        place.register_forward_pre_hook(self._enter)
        model.set_output_embeddings(place)

    def entering(self, **inputs: Any) -> torch.Tensor:
        """Run the model; what enters the output matrix, ``(windows, positions, hidden)``."""
        self._model(**inputs, use_cache=False)
        entered, self._entered = self._entered, None
        assert entered is not None
        return entered

    def _enter(self, module: Any, args: Any) -> None:
        self._entered = args[0]

    def changes_logits(self) -> bool:
        """Whether the class does anything behind the output matrix."""
        import torch

        probe = torch.tensor([[_PROBE]])
        return not has_encoder(self._model) and not torch.equal(self._behind(probe), probe)

    def behind(self, logits: torch.Tensor) -> torch.Tensor:
        """What the class makes of ``(positions, vocabulary)`` or ``(windows, positions, vocabulary)``."""
        whole = logits.reshape(-1, *logits.shape[-2:])
        return self._behind(whole).reshape(logits.shape)

    def _behind(self, logits: torch.Tensor) -> torch.Tensor:
        """The class's forward, with these in place of what its layers give, since the head is an identity."""
        import torch
        from transformers.modeling_outputs import MoeModelOutputWithPast

        class _Answer(MoeModelOutputWithPast):  # type: ignore[misc]
            cross_attentions = None  # which GPT-2 hands on

        def answer(*args: Any, **kwargs: Any) -> Any:
            return _Answer(last_hidden_state=logits)

        with contextlib.ExitStack() as stack:
            for module in {self._model.base_model, self._model.get_decoder()}:  # OPT calls the one within
                stack.enter_context(resting(module, answer))
            made: torch.Tensor = self._model(
                input_ids=torch.zeros(logits.shape[:2], dtype=torch.long), use_cache=False
            ).logits
        self._entered = None
        return made
