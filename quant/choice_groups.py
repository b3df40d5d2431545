"""Tensors that are probed together: one kind of matrix in some neighbouring layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

BANDS = 8
"""Groups of layers, where there are as many; a stack of an encoder-decoder has its own."""

_LAYER = re.compile(r"(?P<stack>(?:enc\.|dec\.)?)blk\.(?P<layer>\d+)\.(?P<kind>.+?)(?:\.weight)?")


@dataclass(frozen=True, order=True)
class Group:
    """A kind of matrix (``ffn_down``) in the layers ``first`` to ``last`` of a stack.

    Outside the layers each tensor is a group of its own; ``first`` is -1 then.
    """

    kind: str
    first: int = -1
    last: int = -1


def groups_of(names: Iterable[str]) -> Mapping[Group, tuple[str, ...]]:
    """The groups of tensors of those names, in the order of the names."""
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
            parts = min(BANDS, layers)
            band = next(each for each in range(parts) if layer < (each + 1) * layers // parts)
            last = (band + 1) * layers // parts - 1
            group = Group(found["stack"] + found["kind"], band * layers // parts, last)
        made[group] = (*made.get(group, ()), name)
    return made


def to_kinds(losses: Mapping[Group, float]) -> dict[Group, float]:
    """What each group's loss is to be multiplied by to become the geometric mean of its kind's groups."""
    logs: dict[str, list[float]] = {}
    for group, loss in losses.items():
        if loss > 0:
            logs.setdefault(group.kind, []).append(math.log(loss))
    means = {kind: math.exp(math.fsum(each) / len(each)) for kind, each in logs.items()}
    return {group: means[group.kind] / loss if loss > 0 else 1.0 for group, loss in losses.items()}


def in_layers(name: str) -> bool:
    """Whether a tensor belongs to a layer."""
    return _LAYER.fullmatch(name) is not None
