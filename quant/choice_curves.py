"""How much more a group of tensors loses the coarser it is stored, through all that was measured of it.

For small errors the divergence is quadratic in what is added to the weights, so proportional to the relative
error (quant/choice_losses.py), a mean square. From 3 bits to 6 that is carried over a factor of thirty, and
it need not hold: an error that is mostly one column's, or one that saturates a softmax, grows otherwise.
Where a group has been measured in formats of several sizes, its loss goes through all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_ALIKE = 1.2  # factor between errors within which two measurements are one, made twice
_EXPONENTS = (0.5, 2.0)  # of the error, that losses are believed to grow by; others are chance


@dataclass(frozen=True)
class Curve:
    """A group's loss in nats by its error: ``points`` are errors and losses, from the smallest error on.

    Between two points it is a power of the error, beyond them proportional to it. Without points nothing is
    lost.
    """

    points: tuple[tuple[float, float], ...]

    def at(self, error: float) -> float:
        """The loss at an error of the whole group."""
        if not self.points or error <= 0:
            return 0.0
        if error == math.inf:
            return math.inf
        below = [point for point in self.points if point[0] <= error]
        above = [point for point in self.points if point[0] > error]
        if not below or not above:
            near = above[0] if above else below[-1]
            return near[1] * error / near[0]
        (less, low), (more, high) = below[-1], above[0]
        grows = math.log(high / low) / math.log(more / less)
        exponent = min(max(grows, _EXPONENTS[0]), _EXPONENTS[1])
        if exponent != grows:  # the finer the less is to be felt: what is large counts
            return float(high * (error / more) ** exponent)
        return float(low * (error / less) ** exponent)


def alike(one: float, other: float) -> bool:
    """Whether two errors of a group are so near that its losses tell nothing more of it."""
    return max(one, other) <= _ALIKE * min(one, other)


def curve(measured: Iterable[tuple[float, float]]) -> Curve:
    """The curve through measurements of errors and losses; those at about the same error become one."""
    points: list[list[tuple[float, float]]] = []
    for error, loss in sorted(measured):
        if error <= 0 or loss <= 0:
            continue
        if points and alike(error, points[-1][0][0]):
            points[-1].append((error, loss))
        else:
            points.append([(error, loss)])
    return Curve(
        tuple((_mean(each[0] for each in alike), _mean(each[1] for each in alike)) for alike in points)
    )


def _mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(math.fsum(logs) / len(logs))
