"""How much a file loses, in words, and which type would lose less: never a verdict by itself.

The grades. Nobody tells a mean divergence of 0.001 nats from none, q8_0 of an 8-billion model is there; its
q4_K_M has 0.03, q3_K_M 0.1. A small model loses several times as much with the same type.

The estimate for another type is the measured divergence times the ratio of the two types' published figures
(Llama-3-8B). On SmolLM2-135M and the trained samples it was within a factor of two of what that type lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..quant.gate_table import GATES

Grade = Literal["nothing", "little", "some", "much"]
_GRADES: tuple[tuple[float, Grade], ...] = ((1e-3, "nothing"), (0.02, "little"), (0.1, "some"))
_BY_SIZE = ("q2_K", "q3_K_S", "q3_K_M", "q3_K_L", "q4_K_S", "q4_K_M", "q5_K_S", "q5_K_M", "q6_K", "q8_0")
"""Types that need no importance data, the smallest first."""
_LESS = 0.5
FACTOR = 2.0
"""What the estimate may be off by, either way."""


@dataclass(frozen=True)
class Loss:
    """The grade of a mean divergence; ``type`` is the smallest that would lose at most half as much.

    ``estimate`` is about what it would lose, in nats, right within a factor of two. Both are None where
    nobody needs one, and where nothing is published for the file's type.
    """

    grade: Grade
    type: str | None = None
    estimate: float | None = None


def loss_of(divergence: float, type_name: str) -> Loss:
    """The loss of a file of that type with that mean divergence, in nats."""
    grade: Grade = next((grade for limit, grade in _GRADES if divergence < limit), "much")
    published = _published()
    if grade != "much" or type_name not in published:
        return Loss(grade)
    for other in _BY_SIZE:
        estimate = divergence * published[other] / published[type_name]
        if published[other] <= _LESS * published[type_name]:
            return Loss(grade, other, float(f"{estimate:.2g}"))
    return Loss(grade)


def _published() -> dict[str, float]:
    """Mean divergences by type: Llama-3-8B's, without importance data where there are such."""
    figures: dict[str, float] = {}
    for name, row in GATES.items():
        for each in row.published:
            figures.setdefault(each.type or name, each.kl_mean)
    return figures
