"""The floats of 8 bits that checkpoints hold, as safetensors names them."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from .tensor import Array

# Bits of the exponent and of the fraction, and the exponent's bias (the OCP and the FNUZ formats).
_LAYOUTS: Mapping[str, tuple[int, int, int]] = {
    "F8_E4M3": (4, 3, 7),
    "F8_E5M2": (5, 2, 15),
    "F8_E4M3FNUZ": (4, 3, 8),
    "F8_E5M2FNUZ": (5, 2, 16),
}
_POWERS = "F8_E8M0"  # powers of two, for scales
FLOAT8 = frozenset({*_LAYOUTS, _POWERS})


def widened(codes: Array, dtype: str) -> Array:
    """The values of such floats, given as bytes, in float32, which holds all of them exactly."""
    values: Array = _table(dtype)[codes]
    return values


@functools.cache
def _table(dtype: str) -> npt.NDArray[np.float32]:
    """The value of each of the 256 codes."""
    codes = np.arange(256)
    if dtype == _POWERS:
        return np.where(codes == 255, np.nan, np.ldexp(1.0, codes - 127)).astype(np.float32)
    bits, fraction_bits, bias = _LAYOUTS[dtype]
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, fraction = (codes & 0x7F) >> fraction_bits, codes & ((1 << fraction_bits) - 1)
    normal = exponent > 0
    parts = fraction / (1 << fraction_bits) + normal
    values = sign * np.ldexp(parts, np.where(normal, exponent, 1) - bias)
    if dtype.endswith("FNUZ"):
        values[0x80] = np.nan  # no negative zero, and no infinity
    elif bits == 5:
        top = exponent == 31
        values[top] = np.where(fraction[top] > 0, np.nan, sign[top] * np.inf)
    else:
        values[(codes & 0x7F) == 0x7F] = np.nan
    table: npt.NDArray[np.float32] = values.astype(np.float32)
    return table
