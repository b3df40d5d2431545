"""Findings on tensors that differ, those of one cause reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..core.language import phrase
from .proof import Finding
from .weight_cases import UNEXPLAINED, UNSEARCHED, Cause, Search
from .weight_causes import cause_of
from .weight_errors import Compared
from .weight_rows import Pair

# Tensors for which whole tensors are searched for their rows; in the others only what is found at once.
_SEARCHED = 24
# Tensors named in a finding.
_NAMED = 4


def findings_of(wrong: Sequence[tuple[Pair, Compared]], where: Search) -> list[Finding]:
    """Findings on the tensors that differ, those of one cause together."""
    groups: dict[tuple[object, ...], list[tuple[Cause, Pair, Compared]]] = {}
    for number, (pair, compared) in enumerate(wrong):
        cause = cause_of(pair, compared, where, thorough=number < _SEARCHED)
        groups.setdefault(cause.key, []).append((cause, pair, compared))
    _join_swapped(groups)
    if UNEXPLAINED in groups:  # what was not looked at closely is most likely the same
        groups[UNEXPLAINED] += groups.pop(UNSEARCHED, [])
    return [_finding(group, where) for group in groups.values()]


def _join_swapped(groups: dict[tuple[object, ...], list[tuple[Cause, Pair, Compared]]]) -> None:
    """Where two layers, or two tensors of a layer, hold each other's weights, say that they are swapped."""
    for key in list(groups):
        kind, *places = key
        back = (kind, *reversed(places))
        if kind != "another" or back == key or key not in groups or back not in groups:
            continue
        group = groups[key] + groups.pop(back)
        first, second = places
        text = phrase("layers {first} and {second} are swapped ({count} tensors: {names})")
        if isinstance(first, str):
            text = phrase("{first} and {second} are swapped")
        groups[key] = [
            (replace(cause, several=text.of(first=first, second=second)), pair, compared)
            for cause, pair, compared in group
        ]


def _finding(group: Sequence[tuple[Cause, Pair, Compared]], where: Search) -> Finding:
    cause, pair, _ = group[0]
    compared = max((item[2] for item in group), key=lambda each: each.stored.error)
    relative = phrase("relative error {error:.4g}")
    error = relative.of(error=compared.stored.error)
    own = None if compared.own is None else relative.of(error=compared.own.error)
    if len(group) == 1:
        return Finding(pair.info.name, cause.one.of(name=pair.info.name), expected=own, found=error)
    names = [item[1].info.name for item in group]
    shown = ", ".join(names[:_NAMED])
    if more := names[_NAMED:]:
        shown = phrase("{names} and {count} more").of(names=shown, count=len(more))
    count = phrase("{some} of {all}").of(some=len(names), all=where.tensors)
    return Finding(names[0], cause.several.of(names=shown, count=count), expected=own, found=error)
