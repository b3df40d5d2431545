"""Tensors that are probed together: one kind of matrix in some neighbouring layers."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

BANDS = 8
"""Groups of layers, where there are as many; a stack of an encoder-decoder has its own."""

_OUTSTANDING = 10.0  # times what the same kind of matrix gives in the layers around: unlike these
_AROUND = 4  # layers on either side

_LAYER = re.compile(r"(?P<stack>(?:enc\.|dec\.)?)blk\.(?P<layer>\d+)\.(?P<kind>.+?)(?:\.weight)?")


@dataclass(frozen=True, order=True)
class Group:
    """A kind of matrix (``ffn_down``) in the layers ``first`` to ``last`` of a stack.

    Outside the layers each tensor is a group of its own; ``first`` is -1 then. ``alone`` is one that is
    unlike its neighbours.
    """

    kind: str
    first: int = -1
    last: int = -1
    alone: bool = False


def groups_of(
    names: Iterable[str], bands: int = BANDS, alone: Collection[str] = ()
) -> Mapping[Group, tuple[str, ...]]:
    """The groups of tensors of those names, in the order of the names; in so many ``bands`` of layers.

    Those ``alone`` are groups of their own.
    """
    names = tuple(names)
    counts: dict[str, int] = {}
    for name in names:
        found = _LAYER.fullmatch(name)
        if found:
            counts[found["stack"]] = max(counts.get(found["stack"], 0), int(found["layer"]) + 1)
    made: dict[Group, tuple[str, ...]] = {}
    for name in names:
        found = _LAYER.fullmatch(name)
        group = Group(name.removesuffix(".weight"))
        if found:
            layers, layer = counts[found["stack"]], int(found["layer"])
            parts = min(bands, layers)
            band = next(each for each in range(parts) if layer < (each + 1) * layers // parts)
            last = (band + 1) * layers // parts - 1
            kind = found["stack"] + found["kind"]
            group = Group(kind, band * layers // parts, last)
            if name in alone:
                group = Group(kind, layer, layer, alone=True)
        made[group] = (*made.get(group, ()), name)
    return made


def outstanding(powers: Mapping[str, float]) -> set[str]:
    """The tensors that give far more than their kind in the layers around; by mean squared outputs.

    Models have one or two matrices with huge outputs at a few positions, and errors weighted by their inputs
    say what is lost there and nothing of all else.
    """
    layers: dict[str, dict[int, str]] = {}
    for name in powers:
        found = _LAYER.fullmatch(name)
        if found:
            layers.setdefault(found["stack"] + found["kind"], {})[int(found["layer"])] = name
    apart = set()
    for of_kind in layers.values():
        for layer, name in of_kind.items():
            near = [powers[of_kind[at]] for at in of_kind if at != layer and abs(at - layer) <= _AROUND]
            if near and powers[name] > _OUTSTANDING * statistics.median(near):
                apart.add(name)
    return apart


def to_kinds(losses: Mapping[Group, float]) -> dict[Group, float]:
    """What each group's loss is to be multiplied by to become the geometric mean of its kind's groups.

    Those alone are left as they are.
    """
    logs: dict[str, list[float]] = {}
    for group, loss in losses.items():
        if loss > 0 and not group.alone:
            logs.setdefault(group.kind, []).append(math.log(loss))
    means = {kind: math.exp(math.fsum(each) / len(each)) for kind, each in logs.items()}
    return {
        group: means[group.kind] / loss if loss > 0 and not group.alone else 1.0
        for group, loss in losses.items()
    }


def in_layers(name: str) -> bool:
    """Whether a tensor belongs to a layer."""
    return _LAYER.fullmatch(name) is not None
