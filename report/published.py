"""Figures others measured for a type, in the columns and rows of the report's table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..verify.proof import Gate
from .text import number, small_percent

_SHARES = ("dp_rms", "same_top1")
_MOST = 3  # models; a wider table is none


@dataclass(frozen=True)
class Published:
    """``cells`` by row and column; ``columns`` are models with their types, ``values`` the numbers."""

    columns: tuple[str, ...] = ()
    cells: Mapping[tuple[str, str], str] = field(default_factory=dict)
    values: Mapping[tuple[str, str], float] = field(default_factory=dict)

    def of(self, row: str) -> list[tuple[str, float]]:
        """Model and number of one row."""
        return [(column, value) for (key, column), value in self.values.items() if key == row]


def published(gate: Gate | None) -> Published:
    """The gate's published figures; they are called ``kl_mean of Llama-3-8B q4_0`` (gates.py)."""
    cells: dict[tuple[str, str], str] = {}
    values: dict[tuple[str, str], float] = {}
    for name, value in ({} if gate is None else gate.published).items():
        row, _, column = name.partition(" of ")
        if isinstance(value, str):
            cells[row, column] = value
            continue
        cells[row, column] = small_percent(value) if row in _SHARES else number(value, exact=True)
        values[row, column] = float(value)
    columns = list(dict.fromkeys(column for _, column in cells))[:_MOST]
    return Published(
        tuple(columns), cells, {place: value for place, value in values.items() if place[1] in columns}
    )
