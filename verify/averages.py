"""Averages of figures over positions: sums are exact, so they are the same whatever the order."""

from __future__ import annotations

import math
import sys

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def percentile(values: Doubles, percent: float) -> float:
    """The value ``percent`` of the others lie below, interpolated as perplexity.cpp does; 0 of nothing."""
    if not len(values):
        return 0.0
    ordered = np.sort(values)
    place = percent / 100 * (len(ordered) - 1)
    below = min(int(place), len(ordered) - 1)
    share = place - below
    return float((1 - share) * ordered[below] + share * ordered[min(below + 1, len(ordered) - 1)])


def mean(values: Doubles) -> float:
    """Their exact sum over their count; 0 of nothing."""
    return math.fsum(values) / max(len(values), 1)


def standard_error(values: Doubles) -> float:
    """Of the mean: the root of the variance over one less than the count (perplexity.cpp).

    Of differences it is the error that tool gets from two variances and a covariance, without cancellation.
    """
    if len(values) < 2:
        return 0.0
    return math.sqrt(mean((values - mean(values)) ** 2) / (len(values) - 1))


def scatter_of(means: Doubles, scatters: Doubles, vocabulary: int) -> float:
    """Sum of squared deviations of all logits from the mean of all."""
    return math.fsum(scatters) + vocabulary * math.fsum((means - mean(means)) ** 2)


def bounded_ratio(part: float, whole: float) -> float:
    """The quotient, at most the largest float, for JSON has no infinity."""
    if part == 0:
        return 0.0
    return min(part / whole, sys.float_info.max) if whole > 0 else sys.float_info.max


def bounded_exp(value: float) -> float:
    """The exponential, at most the largest float."""
    return math.exp(value) if value < math.log(sys.float_info.max) else sys.float_info.max
