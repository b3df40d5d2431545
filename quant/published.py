"""What others measured for a type."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .gate_table import GATES
from .gate_table import Published as Figures

# Mean KL of Llama-3-8B with importance data from Wikitext ("WT 10m" in tools/perplexity/README.md), of
# types whose gate has the figure without.
_WITH_IMPORTANCE = {
    "q4_K_M": 0.028152, "q4_K_S": 0.031951, "q3_K_L": 0.073077, "q3_K_M": 0.084358, "q3_K_S": 0.199821,
    "q2_K": 0.332223,
}  # fmt: skip


@dataclass(frozen=True)
class Band:
    """What to expect of a type: published mean divergences, ``low`` to ``high`` in nats, and whose."""

    low: float
    high: float
    whose: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"low": self.low, "high": self.high, "published": list(self.whose)}


def expected_divergence(type_name: str) -> Band | None:
    """The band of a type (``q4_K_M``); None where no figures of it are published."""
    figures = {each.whose: each.kl_mean for each in _of_type(type_name)}
    if type_name in _WITH_IMPORTANCE:
        figures[f"Llama-3-8B with importance data {type_name}"] = _WITH_IMPORTANCE[type_name]
    ranked = sorted(figures, key=lambda whose: figures[whose])
    return Band(figures[ranked[0]], figures[ranked[-1]], tuple(ranked)) if ranked else None


def _of_type(type_name: str) -> list[Figures]:
    rows = [(name, each) for name, row in GATES.items() for each in row.published]
    return [each for name, each in rows if (each.type or name) == type_name]
