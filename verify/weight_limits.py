"""How far honest quantization takes weights from the checkpoint's, and so where damage begins.

Needed only for files made elsewhere: with importance data the same format allows many bytes, all of them
right. The numbers were measured (tests/test_weight_limits.py measures some of them again) on normal,
Student-t and column-scaled weights of 16 x 256 to 512 x 2048 and on trained models, with importance of equal,
log-normal (sigma 1) and absurdly uneven (sigma 3) size:

- the error over a tensor grew to at most 1.5 times that without importance data (1.9 in the smallest), that
  of a row to at most 6 times (7 for a row with a large outlier that does not matter); a row of zeros
  has the error 1, another row's weights have 1.4;
- importance data make ggml choose scales by least squares, which shrinks: the slope of the file's weights on
  the checkpoint's falls by up to half the squared error at even importance, by four times it at absurd one,
  but it never rises by more than chance. So a slope above that of encoding anew is damage;
- importance data change most rows of every tensor. Where nearly all rows are those of encoding anew, it was
  encoded without such data, and the few others have no reason for a larger error.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from ..quant.formats import Format

# What libggml encodes weights in without looking at importance data: there is one right result, and other
# programs differ from it by rounding at most.
_ONE_RESULT = frozenset(("q8_0", "mxfp4", "nvfp4", "tq1_0", "tq2_0", "q1_0", "q2_0"))

# Formats that are too slow to encode anew or cannot be without importance data: relative error and slope, of
# normal weights and importance all ones; heavy tails have errors a quarter larger.
_TYPICAL: dict[str, tuple[float, float]] = {
    "iq4_xs": (0.077, 0.997),
    "iq4_nl": (0.076, 0.998),
    "iq3_s": (0.167, 1.030),
    "iq3_xxs": (0.213, 1.008),
    "iq2_s": (0.265, 1.024),
    "iq2_xs": (0.300, 0.992),
    "iq2_xxs": (0.344, 0.977),
    "iq1_m": (0.584, 1.064),
    "iq1_s": (0.486, 0.956),
}

SAME_WAY = 1.1
"""Times the error of encoding anew a row may have where only the order of rounding was another."""

# A row of zeros has the error 1.
_NOTHING_LEFT = 0.95


def typical_error(format: Format) -> float:
    """The relative error to expect of a format that is not encoded anew."""
    return 1.25 * _TYPICAL.get(format.name, (0.5, 1.0))[0]


def typical_slope(format: Format) -> float:
    """The slope of the weights on the checkpoint's to expect of a format that is not encoded anew."""
    return _TYPICAL.get(format.name, (0.5, 1.0))[1]


def row_limit(format: Format, own: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The largest relative error a row may have, given those of encoding it anew."""
    allowed = 1.5 * own if format.name in _ONE_RESULT else np.clip(6 * own, 0.3, _NOTHING_LEFT)
    return np.asarray(np.maximum(allowed, 1.05 * own), np.float64)


def error_limit(format: Format, own: float | None) -> float:
    """The largest relative error over a tensor."""
    if own is None:
        return min(_NOTHING_LEFT, 2 * typical_error(format))
    return max(min(_NOTHING_LEFT, (1.1 if format.name in _ONE_RESULT else 2.0) * own), 1.02 * own)


def slope_limits(
    format: Format, own: tuple[float, float] | None, error: float, weights: int
) -> tuple[float, float]:
    """Lowest and highest slope, given error and slope of encoding anew, the file's error and the size.

    The more uneven the importance, the further the slope falls, but the more the error grows with it.
    """
    slack = 0.003
    if own is None:
        own, slack = (typical_error(format), typical_slope(format)), 0.02
    own_error, own_slope = own
    chance = 3 * own_error / math.sqrt(max(weights, 1))
    highest = own_slope + slack + chance
    if format.name in _ONE_RESULT:
        return own_slope - slack - chance, highest
    growth = max(0.0, (error / own_error) ** 2 - 0.9) if own_error else 0.0
    return min(own_slope, 1.0) - slack - chance - own_error**2 * (1 + 6 * growth), highest
