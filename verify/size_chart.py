"""Size against divergence, as SVG: what a byte buys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup

from .comparing import ComparedType
from .report_text import number, plain
from .svg import (
    LEFT,
    RIGHT,
    figure,
    legend,
    level_lines,
    line,
    log_scale,
    path,
    rect,
    short,
    text,
    text_width,
)

_TOP, _BOTTOM = 50, 500
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
_APART = 60  # between the numbers of an axis

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def size_chart(types: Sequence[ComparedType]) -> Markup | None:
    """Every measured file by its size and its mean divergence; None where none was measured.

    llama-quantize's own recipes are discs, what was changed in them squares. A line joins the files that no
    smaller one comes nearer to the checkpoint than.
    """
    measured = [(each, each.figures.kl_mean) for each in types if each.figures is not None]
    if not measured:
        return None
    scale = log_scale([kl for _, kl in measured], _BOTTOM, _TOP)
    x_of = _size_scale([each.bytes for each, _ in measured])
    points = [(x_of(each.bytes), scale.at(kl), each) for each, kl in measured]
    parts = level_lines(scale, LEFT, RIGHT) + _size_axis(x_of)
    parts.append(path(_front([(x, y) for x, y, _ in points]), "front"))
    leaders, names = _names(points)
    parts += [*leaders, *(_mark(x, y, each) for x, y, each in points), *names]
    entries = [("dots stock", "stock recipe of llama-quantize")]
    entries += [] if all(each.stock for each, _ in measured) else [("area variant", "changed recipe")]
    parts += legend(LEFT, 16, [*entries, ("front", "nearest for its size")])
    parts.append(text(LEFT, _TOP - 14, "mean KL divergence, nats", "small"))
    label = (
        f"Size against mean KL divergence of {len(measured)} files, {number(min(kl for _, kl in measured))}"
    )
    return figure(_BOTTOM + 44, f"{label} to {number(max(kl for _, kl in measured))}", parts)


def _size_scale(sizes: Sequence[int]) -> Callable[[float], float]:
    """Where a size stands: logarithmic, since types differ by factors; with room on both sides for names."""
    least, most = math.log(min(sizes)), math.log(max(sizes))
    room = max(0.08 * (most - least), 0.02)
    step = (RIGHT - LEFT) / (most - least + 2 * room)
    return lambda size: LEFT + (math.log(size) - least + room) * step


def _size_axis(x_of: Callable[[float], float]) -> list[Markup]:
    """Round sizes, as far as there is room, and the unit most of them have."""
    unit, name = next(each for each in _UNITS if x_of(each[0]) < (LEFT + RIGHT) / 2)
    parts = [
        text((LEFT + RIGHT) / 2, _BOTTOM + 38, f"size of the file, {name} (logarithmic)", "small", "middle")
    ]
    last = -math.inf
    for tick in (factor * 10.0**power for power in range(-3, 5) for factor in _ROUND):
        x = x_of(tick * unit)
        if LEFT <= x <= RIGHT and x - last >= _APART:
            parts.append(line(x, _BOTTOM, x, _BOTTOM + 5, "axis"))
            parts.append(text(x, _BOTTOM + 20, number(tick, exact=True), "small", "middle"))
            last = x
    return parts


def _front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points nothing to their left lies lower than; ``y`` counts downwards on the page."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


def _mark(x: float, y: float, each: ComparedType) -> Markup:
    assert each.figures is not None
    words = f"{plain(each.type, 60)}: {each.bytes:,} bytes, mean KL {number(each.figures.kl_mean)}"
    if not each.stock:
        return rect(x - 4, y - 4, 8, 8, "variant", words)
    return Markup('<circle class="stock" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(
        short(x), short(y), words
    )


def _names(points: Sequence[tuple[float, float, ComparedType]]) -> tuple[list[Markup], list[Markup]]:
    """Lines to the names that stand far from their points, and the names, none upon another or a point."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    leaders: list[Markup] = []
    names: list[Markup] = []
    for x, y, each in sorted(points, key=lambda point: point[:2]):
        words = plain(each.type, 40)
        box = next((box for box in _boxes(x, y, text_width(words)) if _free(box, taken)), None)
        if box is None:
            continue  # its tooltip and the table have it
        taken.append(box)
        near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        if math.dist((x, y), near) > 14:
            leaders.append(line(x, y, *near, "published"))
        names.append(text(box[0], box[3] - 3, words, "name" if each.stock else "name small"))
    return leaders, names


def _boxes(x: float, y: float, width: float) -> Iterator[Box]:
    """Places for a name of that width around a point, the nearest first."""
    for far in range(8, 90, 9):
        for left, base in (
            (x + far, y + 4),
            (x - far - width, y + 4),
            (x - width / 2, y - far - 2),
            (x - width / 2, y + far + 10),
            (x + 0.7 * far, y - 0.7 * far),
            (x + 0.7 * far, y + far),
            (x - 0.7 * far - width, y - 0.7 * far),
            (x - 0.7 * far - width, y + far),
        ):
            yield left, base - 11, left + width, base + 3


def _free(box: Box, taken: Sequence[Box]) -> bool:
    """Whether a box lies in the field and touches nothing."""
    inside = box[0] >= LEFT and box[2] <= RIGHT and box[1] >= _TOP - 8 and box[3] <= _BOTTOM
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )
