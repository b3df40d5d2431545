"""What tensors lose in formats, and how it follows from what has been measured of groups of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..quant.choice_groups import Group, to_kinds
from ..quant.choice_losses import Errors
from ..quant.formats import Format

Formats = Mapping[str, Format]

_UNKNOWN = 10.0  # so much more may be lost in a format that is coarser than any that was measured


@dataclass(frozen=True)
class Losses:
    """What tensors lose in formats, in nats, by name; ``measured`` says on what.

    ``to_kind`` is by how much each tensor would lose more if its kind of matrix lost the same in all layers.
    """

    of: Mapping[str, Mapping[Format, float]]
    measured: Mapping[str, Any]
    to_kind: Mapping[str, float] = field(default_factory=dict)

    def evened(self, strength: float) -> Losses:
        """The same with differences between layers shrunk: probes on little text overstate them."""
        even = {
            name: {each: loss * self.to_kind.get(name, 1.0) ** strength for each, loss in losses.items()}
            for name, losses in self.of.items()
        }
        return replace(self, of=even)


@dataclass
class Groups:
    """Groups of tensors with their menus and relative errors, and what each was measured to lose."""

    names: Mapping[Group, tuple[str, ...]]
    menus: Mapping[str, Sequence[Format]]
    errors: Mapping[str, Errors]
    _shares: dict[Group, float] = field(default_factory=dict)
    _alone: dict[str, dict[Format, float]] = field(default_factory=dict)

    def learn(self, group: Group, formats: Formats, loss: float) -> None:
        """Note what a group loses in these formats."""
        error = sum(self.errors[name].of[formats[name]] for name in self.names[group])
        self._shares[group] = loss / error if error else 0.0
        if group.alone:
            (name,) = self.names[group]
            self._alone.setdefault(name, {})[formats[name]] = loss

    def losses(self, measured: Mapping[str, Any]) -> Losses:
        """What tensors lose: in proportion to their errors, where those say anything."""
        of: dict[str, dict[Format, float]] = {}
        for group, names in self.names.items():
            for name in names:
                menu, errors = self.menus[name], self.errors[name].of
                of[name] = (
                    _as_measured(menu, self._alone[name])
                    if group.alone
                    else {format: self._shares[group] * errors[format] for format in menu}
                )
        kinds = to_kinds(self._shares)
        to_kind = {name: kinds[group] for group, names in self.names.items() for name in names}
        return Losses({name: of[name] for name in self.menus}, measured, to_kind)


def _as_measured(menu: Sequence[Format], alone: Mapping[Format, float]) -> dict[Format, float]:
    """What a tensor loses whose errors say nothing of it: as much as in the next coarser format measured.

    In a format coarser than all that were it loses ``_UNKNOWN`` times as much as in the coarsest of these.
    """
    of, last = {}, _UNKNOWN * max(alone.values(), default=0.0)
    for format in menu:
        last = of[format] = alone.get(format, last)
    return of
