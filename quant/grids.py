"""The grids of the iq formats, for our kernels: taken from the gguf package, which has llama.cpp's.

A point of a grid is told by the levels of its weights; grids.c makes tables of the neighbours of all others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .formats import Format

# Format -> how many of the smallest distances neighbours of a point off the grid may have (nwant in
# iq2xs_init_impl and iq3xs_init_impl of ggml-quants.c).
DISTANCES = {"iq1_s": 3, "iq1_m": 3, "iq2_xxs": 2, "iq2_xs": 2, "iq2_s": 1, "iq3_xxs": 2, "iq3_s": 3}


def grid_codes(format: Format) -> tuple[int, npt.NDArray[np.uint16]]:
    """How many weights a point of the grid has, and the codes (points,) of the points as grids.h says."""
    from gguf import quants

    packed = getattr(quants, format.name.upper())
    packed.init_grid()
    count, weights = packed.grid_shape
    levels = np.searchsorted(np.asarray(packed.grid_map), packed.grid.reshape(count, weights))
    bits = 3 if weights == 4 else 2
    return weights, (levels << bits * np.arange(weights)).sum(axis=1).astype(np.uint16)
