"""What recomputing is made of: the copies of a window, a matrix of the file, and what llama.cpp gave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from ..core.tensor import Tensor
from .ggml_rounding import Rounding

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
COPIES = 3
"""Of the window: with llama.cpp's own inputs, with the file's weights alone, and with rounded inputs, too."""
SYNCHRONIZED, WEIGHTS_ONLY, ROUNDED = range(COPIES)


class MatrixInput(Protocol):
    """What llama.cpp multiplied a matrix by (runtimes/matrix_inputs.py)."""

    @property
    def values(self) -> Floats:
        """``(positions, columns)``, of experts' matrices ``(positions, slots, columns)``."""
        ...

    @property
    def experts(self) -> npt.NDArray[np.int32] | None:
        """The experts chosen for each position, ``(positions, experts)``."""
        ...

    @property
    def rounded(self) -> Floats | None:
        """What the product was made with, where the runtime tells; else a matrix's rounding says it."""
        ...


@dataclass(frozen=True)
class Matrix:
    """A matrix of the file, how its inputs are rounded, and the minimums of its blocks where they matter."""

    name: str
    rounding: Rounding
    minimums: Tensor | None


def as_told(values: torch.Tensor, given: MatrixInput | None) -> torch.Tensor | None:
    """``(copies, positions, columns)`` with what the runtime rounded its inputs to, if it told."""
    import torch

    theirs = None if given is None else given.rounded
    if theirs is None or theirs.shape != tuple(values.shape[1:]):
        return None
    made = values.clone()
    made[SYNCHRONIZED] = torch.from_numpy(theirs.copy())
    return made
