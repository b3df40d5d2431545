"""Size against divergence, as SVG: what a byte buys."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

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

_TOP, _BOTTOM = 50, 420
_STEPS = (1, 2, 2.5, 5)
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def size_chart(types: Sequence[ComparedType]) -> Markup | None:
    """Every measured file by its size and its mean divergence (logarithmic); None where none was measured.

    llama-quantize's own recipes are discs, what was changed in them squares. A line joins the files that no
    smaller one comes nearer to the checkpoint than.
    """
    measured = [(each, each.figures.kl_mean) for each in types if each.figures is not None]
    if not measured:
        return None
    scale = log_scale([kl for _, kl in measured], _BOTTOM, _TOP)
    least, most = min(each.bytes for each, _ in measured), max(each.bytes for each, _ in measured)
    room = max(0.06 * (most - least), 0.02 * most)
    begin, end = max(0.0, least - room), most + room

    def x_of(size: float) -> float:
        return LEFT + (RIGHT - LEFT) * (size - begin) / (end - begin)

    points = [(x_of(each.bytes), scale.at(kl), each) for each, kl in measured]
    parts = level_lines(scale, LEFT, RIGHT) + _size_axis(begin, end, x_of(begin), x_of(end))
    parts.append(path(_front([(x, y) for x, y, _ in points]), "front"))
    parts += [_mark(x, y, each) for x, y, each in points]
    parts += _names(points)
    entries = [("dots stock", "recipe of llama-quantize")]
    entries += [] if all(each.stock for each, _ in measured) else [("area variant", "changed recipe")]
    parts += legend(LEFT, 16, [*entries, ("front", "nearest for its size")])
    parts.append(text(LEFT, _TOP - 14, "mean KL divergence, nats", "small"))
    label = (
        f"Size against mean KL divergence of {len(measured)} files, {number(min(kl for _, kl in measured))}"
    )
    return figure(_BOTTOM + 44, f"{label} to {number(max(kl for _, kl in measured))}", parts)


def _size_axis(begin: float, end: float, left: float, right: float) -> list[Markup]:
    unit, name = next(each for each in _UNITS if end >= each[0])
    span = (end - begin) / unit
    power = 10.0 ** math.floor(math.log10(span / 8))
    step = next(factor * power for factor in (*_STEPS, 10) if span / (factor * power) <= 8)
    parts = [text((left + right) / 2, _BOTTOM + 38, f"size of the file, {name}", "small", "middle")]
    tick = math.ceil(begin / unit / step) * step
    while tick * unit <= end:
        x = left + (right - left) * (tick * unit - begin) / (end - begin)
        parts.append(line(x, _BOTTOM, x, _BOTTOM + 5, "axis"))
        parts.append(text(x, _BOTTOM + 20, number(tick, exact=True), "small", "middle"))
        tick += step
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


def _names(points: Sequence[tuple[float, float, ComparedType]]) -> list[Markup]:
    """Each point's type near it, where no other name or point lies, joined to it by a line if far."""
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    parts: list[Markup] = []
    for x, y, each in sorted(points, key=lambda point: point[:2]):
        words = plain(each.type, 40)
        box = next((box for box in _boxes(x, y, text_width(words)) if _free(box, taken)), None)
        if box is None:
            continue  # its tooltip and the table have it
        taken.append(box)
        near = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
        if math.dist((x, y), near) > 14:
            parts.append(line(x, y, *near, "axis"))
        parts.append(text(box[0], box[3] - 3, words, "" if each.stock else "small"))
    return parts


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
