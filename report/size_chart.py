"""Size against divergence, as SVG: what a byte buys."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from markupsafe import Markup

from ..core.language import _
from ..flows.compare import ComparedType
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
from .text import number, plain

_TOP, _BOTTOM = 50, 560
_DECADES = 6  # of divergence, so that f16 and f32 do not take the room of the others
_ROUND = (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9)
_DIRECTIONS = (0, 180, 270, 90, 315, 45, 225, 135, 338, 22, 202, 158, 292, 68, 248, 112)  # of names, degrees
_ROOMY = 1.15  # names hold more wide letters than other text
_APART = 60  # between the numbers of an axis

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "bytes"))


def size_chart(types: Sequence[ComparedType]) -> Markup | None:
    """Every measured file by its size and its mean divergence; None where none was measured.

    llama-quantize's own recipes are discs, what was changed in them squares, and so, in another colour and
    joined by a line, are files whose formats were chosen by measured losses. Another line joins the files
    that no smaller one comes nearer to the checkpoint than.
    """
    measured = [(each, each.figures.kl_mean) for each in types if each.figures is not None]
    if not measured:
        return None
    scale = log_scale([kl for each, kl in measured], _BOTTOM, _TOP, decades=_DECADES)
    x_of = _size_scale([each.bytes for each, kl in measured])
    points = [(x_of(each.bytes), scale.at(kl), each) for each, kl in measured]
    parts = level_lines(scale, LEFT, RIGHT) + _size_axis(x_of)
    parts.append(path(_front([(x, y) for x, y, each in points]), "front"))
    chosen = sorted((x, y) for x, y, each in points if each.choice is not None)
    parts += [path(chosen, "choices")] if len(chosen) > 1 else []
    leaders, names = _names(points)
    parts += [*leaders, *(_mark(x, y, each) for x, y, each in points), *names]
    entries = [("dots stock", _("stock recipe of llama-quantize"))]
    if any(not each.stock and each.choice is None for each, kl in measured):
        entries.append(("area variant", _("changed recipe")))
    entries += [("area chosen", _("chosen by measured losses"))] if chosen else []
    parts += legend(LEFT, 16, [*entries, ("front", _("nearest for its size"))])
    parts.append(text(LEFT, _TOP - 14, _("mean KL divergence, nats"), "small"))
    label = _(
        "Size against mean KL divergence of {count} files, {least} to {most}",
        count=len(measured),
        least=number(min(kl for each, kl in measured)),
        most=number(max(kl for each, kl in measured)),
    )
    return figure(_BOTTOM + 44, label, parts)


def _size_scale(sizes: Sequence[int]) -> Callable[[float], float]:
    """Where a size stands: logarithmic, since types differ by factors; with room on both sides for names."""
    least, most = math.log(min(sizes)), math.log(max(sizes))
    room = max(0.08 * (most - least), 0.02)
    step = (RIGHT - LEFT) / (most - least + 2 * room)
    return lambda size: LEFT + (math.log(size) - least + room) * step


def _size_axis(x_of: Callable[[float], float]) -> list[Markup]:
    """Round sizes, as far as there is room, and the unit most of them have."""
    unit, name = next(each for each in _UNITS if x_of(each[0]) < (LEFT + RIGHT) / 2)
    words = _("size of the file, {unit} (logarithmic)", unit=name)
    parts = [text((LEFT + RIGHT) / 2, _BOTTOM + 38, words, "small", "middle")]
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
    words = _(
        "{type}: {bytes} bytes, mean KL {kl}",
        type=plain(each.type, 60),
        bytes=f"{each.bytes:,}",
        kl=number(each.figures.kl_mean),
    )
    if not each.stock:
        return rect(x - 4, y - 4, 8, 8, "variant" if each.choice is None else "chosen", words)
    return Markup('<circle class="stock" cx="{}" cy="{}" r="4.5"><title>{}</title></circle>').format(
        short(x), short(y), words
    )


def _names(points: Sequence[tuple[float, float, ComparedType]]) -> tuple[list[Markup], list[Markup]]:
    """Lines to the names that stand far from their points, and the names, none upon another or a point."""
    marks = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    words_and_ways: list[Box] = []
    leaders: list[Markup] = []
    names: list[Markup] = []
    for x, y, each in sorted(points, key=lambda point: point[:2]):
        words = plain(each.type, 40)
        place = _place(x, y, _ROOMY * text_width(words), marks, words_and_ways)
        if place is None:
            continue  # its tooltip and the table have it
        box, way = place
        words_and_ways += [box, *way]
        if way:
            leaders.append(line(x, y, *_nearest(x, y, box), "published"))
        names.append(_name(x, box, words, "name" if each.stock else "name small"))
    return leaders, names


def _name(x: float, box: Box, words: str, style: str) -> Markup:
    """A name in its box, at the end that is next to the point."""
    left, right, bottom = box[0], box[2], box[3]
    if right <= x:
        return text(right, bottom - 3, words, style, "end")
    if left >= x:
        return text(left, bottom - 3, words, style)
    return text((left + right) / 2, bottom - 3, words, style, "middle")


def _place(
    x: float, y: float, width: float, marks: Sequence[Box], taken: Sequence[Box]
) -> tuple[Box, list[Box]] | None:
    """A name's box and the line to it: one that crosses no other mark, or else one that crosses no name."""
    boxes = [box for box in _boxes(x, y, width) if _free(box, [*marks, *taken])]
    ways = [(box, _way((x, y), _nearest(x, y, box))) for box in boxes]
    for crossed in ([*marks, *taken], taken):
        for box, way in ways:
            if all(_free(step, crossed) for step in way):
                return box, way
    return None


def _nearest(x: float, y: float, box: Box) -> tuple[float, float]:
    """The place of a box that is nearest to a point."""
    return min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3])


def _way(start: tuple[float, float], end: tuple[float, float]) -> list[Box]:
    """What a line to a name covers, in small steps from outside its point; none where the name is near."""
    far = math.dist(start, end)
    if far <= 14:
        return []
    shares = (at / far for at in range(10, int(far) - 1, 4))
    places = ((a + share * (b - a) for a, b in zip(start, end, strict=True)) for share in shares)
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in places]


def _boxes(x: float, y: float, width: float) -> Iterator[Box]:
    """Places for a name of that width around a point, the nearest first."""
    for far in range(8, 160, 8):
        for degrees in _DIRECTIONS:
            right, down = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
            left = x + far * right - width * (1 - right) / 2
            base = y + (far + 5) * down + 4
            yield left, base - 11, left + width, base + 3


def _free(box: Box, taken: Sequence[Box]) -> bool:
    """Whether a box lies in the field and touches nothing."""
    inside = box[0] >= LEFT and box[2] <= RIGHT and box[1] >= _TOP - 8 and box[3] <= _BOTTOM
    return inside and not any(
        box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3] for other in taken
    )
