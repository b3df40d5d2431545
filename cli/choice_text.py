"""A choice of formats as a table: kinds of matrices by layers, at most 80 columns wide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..core.language import _
from .console import printable, say, table, width

if TYPE_CHECKING:
    from ..converters.results import Output
    from ..quant.choice_groups import Group
    from ..quant.policy_file import Choice

_WIDTH = 80
_MOSTLY = "~"


def choice_text(choice: Choice) -> str:
    """The format of each kind in each group of layers, then of what lies outside, and the prediction."""
    from ..quant.choice_groups import groups_of

    groups = groups_of(choice.formats)
    cells = {group: _cell([choice.formats[name].name for name in names]) for group, names in groups.items()}
    stacks: dict[tuple[tuple[int, int], ...], list[str]] = {}
    for kind in dict.fromkeys(group.kind for group in cells if group.first >= 0):
        bands = tuple(sorted((each.first, each.last) for each in cells if each.kind == kind))
        stacks.setdefault(bands, []).append(kind)
    parts = [text for bands, kinds in stacks.items() for text in _blocks(bands, kinds, cells)]
    outside = [(printable(each.kind), cell) for each, cell in cells.items() if each.first < 0]
    parts += [table(outside)] if outside else []
    if any(cell.endswith(_MOSTLY) for cell in cells.values()):
        parts.append(f"{_MOSTLY} mostly; the policy file has every matrix")
    loss = f"{choice.predicted:.3g}"
    parts.append(f"predicted mean KL {loss} nats on text like the one it was calibrated on")
    return "\n".join(parts)


def print_choices(outputs: Iterable[Output]) -> None:
    """The choices behind files that were made."""
    for output in outputs:
        if output.choice is not None:
            say(f"{output.path.name}:\n{choice_text(output.choice)}")
            say(f"policy file: {output.policy}\n" if output.policy else "")


def _cell(formats: list[str]) -> str:
    (most, count), *_ = Counter(formats).most_common()
    return most if count == len(formats) else f"{most}{_MOSTLY}"


def _blocks(bands: tuple[tuple[int, int], ...], kinds: list[str], cells: dict[Group, str]) -> list[str]:
    """The bands side by side, as many as there is room for, the others below."""
    from ..quant.choice_groups import Group

    heads = [str(first) if first == last else f"{first}-{last}" for first, last in bands]
    rows = {kind: [cells.get(Group(kind, *band), "") for band in bands] for kind in kinds}
    title = _("layers")
    margin = max(width(title), *(len(kind) for kind in kinds))
    widths = [
        2 + max(len(head), *(len(row[place]) for row in rows.values())) for place, head in enumerate(heads)
    ]
    blocks, start = [], 0
    while start < len(heads):
        stop = start + 1
        while stop < len(heads) and margin + sum(widths[start : stop + 1]) <= _WIDTH:
            stop += 1
        lines = [(printable(kind), *row[start:stop]) for kind, row in rows.items()]
        blocks.append(table(lines, header=(title, *heads[start:stop])))
        start = stop
    return blocks
