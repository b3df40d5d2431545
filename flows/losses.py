"""What tensors lose in formats, and how it follows from what has been measured of groups of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..quant.choice_curves import Curve, alike, curve
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
    """Groups of tensors, and what is known of them: relative errors, and losses of some mixes of formats."""

    names: Mapping[Group, tuple[str, ...]]
    menus: Mapping[str, Sequence[Format]]
    errors: Mapping[str, Errors]
    points: dict[Group, list[tuple[float, float]]] = field(default_factory=dict)
    single: dict[str, dict[Format, float]] = field(default_factory=dict)

    def learn(self, group: Group, formats: Formats, loss: float) -> None:
        """Note what a group loses in these formats."""
        self.points.setdefault(group, []).append((self._error(group, formats), loss))
        if len(self.names[group]) == 1:
            (name,) = self.names[group]
            self.single.setdefault(name, {})[formats[name]] = loss

    def unknown(self, mixes: Sequence[Formats]) -> list[tuple[Group, Formats]]:
        """The groups that have not been measured at about the error they have in ``mixes``.

        Those in the finest format on the menu are left out: there is no way up from it, and it loses least.
        """
        found: list[tuple[Group, Formats]] = []
        for group in self.names:
            known = [error for error, _ in self.points.get(group, ())]
            for mix in mixes:
                if group.alone or all(mix[name] == self.menus[name][-1] for name in self.names[group]):
                    continue
                error = self._error(group, mix)
                if 0 < error < math.inf and not any(alike(error, each) for each in known):
                    known.append(error)
                    found.append((group, mix))
        return found

    def losses(self, measured: Mapping[str, Any]) -> Losses:
        """What tensors lose, in the order of the groups' names."""
        of: dict[str, dict[Format, float]] = {}
        shares: dict[Group, float] = {}
        for group, names in self.names.items():
            along, count = curve(self.points.get(group, ())), len(names)
            shares[group] = _share(along)
            for name in names:
                errors, menu, single = self.errors[name].of, self.menus[name], self.single.get(name, {})
                by_error = {format: along.at(count * errors[format]) / count for format in menu}
                known = {format: single.get(format, by_error[format]) for format in menu}
                of[name] = _as_measured(menu, single) if group.alone else known
        kinds = to_kinds(shares)
        to_kind = {name: kinds[group] for group, names in self.names.items() for name in names}
        return Losses({name: of[name] for name in self.menus}, dict(measured), to_kind)

    def _error(self, group: Group, formats: Formats) -> float:
        return sum(self.errors[name].of[formats[name]] for name in self.names[group])


def _share(along: Curve) -> float:
    """A group's loss by its error, where it was measured coarsest."""
    return along.points[-1][1] / along.points[-1][0] if along.points else 0.0


def _as_measured(menu: Sequence[Format], single: Mapping[Format, float]) -> dict[Format, float]:
    """What a tensor loses whose errors say nothing of it: as much as in the next coarser format measured.

    In a format coarser than all that were it loses ``_UNKNOWN`` times as much as in the coarsest of these.
    """
    of, last = {}, _UNKNOWN * max(single.values(), default=0.0)
    for format in menu:
        last = of[format] = single.get(format, last)
    return of
