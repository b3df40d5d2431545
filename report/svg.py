"""SVG by hand: text, scales and axes, shared by the charts. Colours and fonts come from data/report.css.

What comes from files has to go through ``text.plain`` before it is handed over as a label or title.

Elements carry classes only: no style, no identifiers, no references, so that charts stand side by side.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from .text import power

WIDTH = 960
LEFT, RIGHT = 64, WIDTH - 14  # where the field of a chart with a vertical scale begins and ends
_HIGHEST = 6  # the power of ten a logarithmic scale ends at, however large its numbers
_CHARACTER = 7.0  # about the width of one in the charts' 13 pixel type; wide ones count twice


def figure(
    height: float, label: str, parts: Iterable[Markup], *, width: float = WIDTH, style: str = ""
) -> Markup:
    """One drawing; ``label`` says to those who cannot see it what it shows."""
    return Markup('<svg class="chart{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        f" {style}" if style else "",
        short(width),
        short(height),
        label,
        Markup("\n").join(parts),
    )


def short(value: float) -> str:
    """A coordinate in as few characters as a tenth of a unit needs."""
    return f"{value:.1f}".removesuffix(".0")


def text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> Markup:
    """A line of text; ``anchor`` is start, middle or end."""
    return Markup('<text class="{}" x="{}" y="{}" text-anchor="{}">{}</text>').format(
        style, short(x), short(y), anchor, content
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line."""
    return Markup('<path class="{}" d="M{} {}L{} {}"/>').format(
        style, short(x1), short(y1), short(x2), short(y2)
    )


def path(points: Sequence[tuple[float, float]], style: str) -> Markup:
    """A line through ``points``."""
    steps = " ".join(f"{short(x)} {short(y)}" for x, y in points)
    return Markup('<path class="{}" d="M{}"/>').format(style, steps) if points else Markup("")


def rect(x: float, y: float, width: float, height: float, style: str, title: str = "") -> Markup:
    """A rectangle, with a tooltip where ``title`` says something."""
    shape = Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"').format(
        style, short(x), short(y), short(max(width, 0)), short(max(height, 0))
    )
    return shape + (Markup("><title>{}</title></rect>").format(title) if title else Markup("/>"))


def text_width(content: str) -> float:
    """About the room ``content`` takes; Hangul and Hanja are twice as wide as Latin."""
    return sum(2 * _CHARACTER if ord(character) >= 0x1100 else _CHARACTER for character in content)


def legend(x: float, y: float, entries: Sequence[tuple[str, str]]) -> list[Markup]:
    """Swatches with words in a row; an entry is the class of its sample and its words."""
    parts = []
    for style, words in entries:
        if style.startswith("area"):
            parts.append(rect(x, y - 9, 22, 10, style.removeprefix("area ")))
        elif style.startswith("dots"):
            parts += [_dot(x + step, y - 4, style.removeprefix("dots ")) for step in (3, 11, 19)]
        else:
            parts.append(line(x, y - 4, x + 22, y - 4, style))
        parts.append(text(x + 28, y, words, "small"))
        x += 28 + text_width(words) + 22
    return parts


def _dot(x: float, y: float, style: str) -> Markup:
    return Markup('<path class="{}" d="M{} {}h0"/>').format(style, short(x), short(y))


@dataclass(frozen=True)
class LogScale:
    """Decades ``low`` to ``high`` on coordinates ``start`` (for low) to ``end``; all else is held inside."""

    low: int
    high: int
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where ``value`` stands; zero and below at the lower end, what is not finite at the upper."""
        if not math.isfinite(value):
            return self.end
        return self._at(math.log10(value) if value > 0 else self.low)

    def _at(self, decade: float) -> float:
        share = (decade - self.low) / (self.high - self.low)
        return self.start + (self.end - self.start) * min(max(share, 0.0), 1.0)

    def ticks(self) -> list[tuple[float, str]]:
        """Whole decades, at most about eight of them, with their labels."""
        step = max(1, math.ceil((self.high - self.low) / 8))
        return [(self._at(i), power(i)) for i in range(self.low, self.high + 1, step)]  # 10.0**309 overflows


def log_scale(values: Iterable[float], start: float, end: float, *, decades: int = 8) -> LogScale:
    """A scale of whole decades around the positive ones of ``values``, of at most ``decades``."""
    good = [value for value in values if math.isfinite(value) and value > 1e-30]
    if not good:
        return LogScale(-6, 0, start, end)
    # what stands for infinity, where JSON allows none, is drawn at the end of the scale
    high = min(math.ceil(math.log10(max(good)) + 0.02), _HIGHEST)
    low = max(min(math.floor(math.log10(min(good))), high - 1), high - decades)
    return LogScale(min(low, high - 1), high, start, end)


def level_lines(scale: LogScale, left: float, right: float) -> list[Markup]:
    """Horizontal lines at the decades of a vertical scale, labelled at the left."""
    parts = []
    for y, label in scale.ticks():
        parts += [line(left, y, right, y, "grid"), text(left - 8, y + 4, label, "small", "end")]
    return parts


def nice_ticks(limit: float, most: int = 8) -> list[int]:
    """Round whole numbers from 0 to ``limit``."""
    step = next(
        factor * 10**exponent
        for exponent in range(12)
        for factor in (1, 2, 5)
        if limit / (factor * 10**exponent) <= most
    )
    return list(range(0, int(limit) + 1, step))
