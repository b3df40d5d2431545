"""How the next token is chosen, whatever runs the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The defaults are llama.cpp's (common/common.h).

    Temperature 0 takes the most likely token; ``repeat_penalty`` 1 and ``top_k`` 0 switch those off.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    seed: int = 0

    def packed(self) -> bytes:
        """As the children of ``llama_sampling.py`` and ``llama_generate.py`` read it."""
        from .llama_sampling import SAMPLING

        return SAMPLING.pack(
            self.temperature,
            self.top_k,
            self.top_p,
            self.min_p,
            self.repeat_penalty,
            self.repeat_last_n,
            self.seed,
        )
