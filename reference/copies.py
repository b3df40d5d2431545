"""What recomputing is made of: the copies of a window, a matrix of the file, and what llama.cpp gave it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..core.tensor import Tensor
from .ggml_rounding import Rounding

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


@dataclass(frozen=True)
class Matrix:
    """A matrix of the file, how its inputs are rounded, and the minimums of its blocks where they matter."""

    name: str
    rounding: Rounding
    minimums: Tensor | None
