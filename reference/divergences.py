"""How far predictions are from the plain model's, at every position that counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..core.windows import Window
from .reading import OutputMatrix
from .states import Kept, States

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_LOGITS = 64 << 20  # bytes of logits worked on at once


@dataclass(frozen=True)
class Divergence:
    """Mean KL divergence in nats over all ``positions`` of the windows that count, and its standard error."""

    mean: float
    error: float
    positions: npt.NDArray[np.float64] = field(repr=False, compare=False)

    @classmethod
    def of(cls, positions: npt.NDArray[np.float64]) -> Divergence:
        """What these, one for each position, come to."""
        count = len(positions)
        error = float(positions.std(ddof=1) / np.sqrt(count)) if count > 1 else 0.0
        return cls(max(float(positions.mean()), 0.0), error, positions)


class Compared:
    """The plain model's predictions at all positions that count, and how far others are from them."""

    def __init__(
        self,
        output: OutputMatrix,
        hidden: Sequence[Floats],
        windows: Sequence[Window],
        states: States,
    ) -> None:
        self._scored = [window.scored for window in windows]
        self._step = max(1, _LOGITS // (4 * output.rows))
        self._logs: list[Kept] = [states.keep(logs) for logs in self._log_chances(output, hidden)]

    def with_other(self, hidden: Sequence[Floats], output: OutputMatrix) -> Divergence:
        """How far what this gives is from the plain model's predictions."""
        found = [
            (plain.exp() * (plain - other)).sum(-1).double().numpy()
            for plain, other in zip(
                (kept.get() for kept in self._logs), self._log_chances(output, hidden), strict=True
            )
        ]
        return Divergence.of(np.concatenate(found))

    def _log_chances(self, output: OutputMatrix, hidden: Sequence[Floats]) -> Iterator[torch.Tensor]:
        """Logarithms of the probabilities, ``(positions, vocabulary)``, some positions at a time."""
        import torch

        pairs = zip(hidden, self._scored, strict=True)
        entering = np.concatenate([values[scored.start : scored.stop] for values, scored in pairs])
        for start in range(0, len(entering), self._step):
            logits = output.multiply(torch.from_numpy(entering[start : start + self._step]))
            yield torch.from_numpy(logits).log_softmax(-1)
