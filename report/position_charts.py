"""Position by position, as SVG: divergence along the text, and how the right token's probability changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from statistics import fmean, median

from markupsafe import Markup

from ..core.language import _, ngettext
from ..verify.measurements import Figures, Positions
from ..verify.proof import Gate
from .svg import (
    LEFT,
    RIGHT,
    LogScale,
    figure,
    legend,
    level_lines,
    line,
    log_scale,
    nice_ticks,
    path,
    rect,
    short,
    text,
    text_width,
)
from .text import count, number, small_percent

_COLUMNS = 420  # of the chart by position: more would be finer than a screen shows
_BINS = 61  # odd: the middle one is around zero
# Of Δp, on either side: 1e-8 to 0.5.
_SPANS = tuple(float(f"{first}e{exponent}") for exponent in range(-8, 0) for first in (1, 2, 5))
_LABELLED_WINDOWS = 64


def kl_by_position(
    positions: Positions, marked: Sequence[tuple[int, int, float]] = (), gate: Gate | None = None
) -> Markup:
    """Divergence at every scored position in reading order, window beside window, on a logarithmic scale.

    Where there are more positions than columns a column shows their range and median. ``marked`` are
    (window, position, divergence) to be ringed: the worst tokens.
    """
    values = positions.kl
    top, bottom = 50, 262
    places = _spread(values)
    gates = [gate.warns] if gate is not None and gate.measure == "kl_mean" else []
    scale = log_scale([*places, *gates], bottom, top)
    x_of = [LEFT + (RIGHT - LEFT) * (i + 0.5) / len(values) for i in range(len(values))]
    per_column = math.ceil(len(values) / _COLUMNS)
    groups = [list(group) for _, group in groupby(range(len(values)), key=lambda i: positions.window[i])]
    parts = _window_bands(groups, positions, x_of, top, bottom) + level_lines(scale, LEFT, RIGHT)
    for group in groups:
        parts += _columns(group, values, x_of, scale, per_column)
    if len(groups) <= _LABELLED_WINDOWS:
        for group in groups:
            mean = scale.at(fmean(values[i] for i in group))
            parts.append(line(x_of[group[0]], mean, x_of[group[-1]], mean, "mean"))
    parts += [line(LEFT, scale.at(limit), RIGHT, scale.at(limit), "limit") for limit in gates]
    parts += _rings(positions, marked, x_of, scale)
    parts += [
        text(LEFT + (RIGHT - LEFT) * tick / len(values), bottom + 18, count(tick), "small", "middle")
        for tick in nice_ticks(len(values))
    ]
    parts.append(
        text((LEFT + RIGHT) / 2, bottom + 36, _("scored positions, in reading order"), "small", "middle")
    )
    entries = [("dots dot", _("a position"))] if per_column == 1 else [
        ("range", _("range of {count} positions", count=per_column)), ("median", _("their median"))
    ]  # fmt: skip
    entries += [("mean", _("mean of the window"))] if len(groups) <= _LABELLED_WINDOWS else []
    entries += (
        [("limit", _("gate for the mean, {limit}", limit=number(gates[0], exact=True)))] if gates else []
    )
    entries += [("dots ring", _("worst tokens"))] if marked else []
    parts += legend(LEFT, 16, entries)
    label = _(
        "KL divergence at {positions} in {windows}: median {median}, largest {largest}",
        positions=ngettext("{count} position", "{count} positions", len(values)),
        windows=ngettext("{count} window", "{count} windows", len(groups)),
        median=number(median(values)),
        largest=number(max(values)),
    )
    return figure(bottom + 46, label, parts)


def _spread(values: Sequence[float]) -> list[float]:
    """The values a scale has to show: all but the lowest two in a hundred, which are as good as zero."""
    good = sorted(value for value in values if math.isfinite(value) and value > 0)
    return good[len(good) // 50 :]


def _window_bands(
    groups: Sequence[Sequence[int]], positions: Positions, x_of: Sequence[float], top: float, bottom: float
) -> list[Markup]:
    """Every second window shaded, and their numbers (from 1) where there is room."""
    parts: list[Markup] = []
    half = (x_of[-1] - x_of[0]) / max(len(x_of) - 1, 1) / 2
    for at, group in enumerate(groups):
        left, right = x_of[group[0]] - half, x_of[group[-1]] + half
        if at % 2 == 0:
            parts.append(rect(left, top - 20, right - left, bottom - top + 20, "band"))
        name = str(positions.window[group[0]] + 1)
        full = _("window {number}", number=name)
        words = full if right - left > text_width(full) + 10 else name
        if right - left > text_width(words) + 4:
            parts.append(text((left + right) / 2, top - 7, words, "small faint", "middle"))
    return parts


def _columns(
    group: Sequence[int], values: Sequence[float], x_of: Sequence[float], scale: LogScale, size: int
) -> list[Markup]:
    """One window's values: dots, or ranges with a line through the medians."""
    if size == 1:
        steps = "".join(f"M{short(x_of[i])} {short(scale.at(values[i]))}h0" for i in group)
        return [Markup('<path class="dot" d="{}"/>').format(steps)]
    ranges, middles = [], []
    for at in range(0, len(group), size):
        column = group[at : at + size]
        sorted_values = sorted(values[i] for i in column)
        x = x_of[column[len(column) // 2]]
        ranges.append(f"M{short(x)} {short(scale.at(sorted_values[0]))}V{short(scale.at(sorted_values[-1]))}")
        middles.append((x, scale.at(median(sorted_values))))
    return [Markup('<path class="range" d="{}"/>').format("".join(ranges)), path(middles, "median")]


def _rings(
    positions: Positions, marked: Sequence[tuple[int, int, float]], x_of: Sequence[float], scale: LogScale
) -> list[Markup]:
    where = {place: i for i, place in enumerate(zip(positions.window, positions.position, strict=True))}
    return [
        Markup('<circle class="ring" cx="{}" cy="{}" r="5"><title>{}</title></circle>').format(
            short(x_of[where[window, position]]),
            short(scale.at(kl)),
            _(
                "worst token {rank}: window {window}, position {position}, KL {kl}",
                rank=rank,
                window=window + 1,
                position=position + 1,
                kl=number(kl),
            ),
        )
        for rank, (window, position, kl) in enumerate(marked, 1)
        if (window, position) in where
    ]


def dp_histogram(dp: Sequence[float], figures: Figures) -> Markup:
    """How often the right token's probability changed by how much; the counts on a logarithmic scale."""
    good = [value for value in dp if math.isfinite(value)]
    reach = max((abs(value) for value in good), default=0.0)
    span = next((limit for limit in _SPANS if reach <= limit), 1.0)
    bins = [0] * _BINS
    for value in good:
        bins[min(int((value + span) / (2 * span) * _BINS), _BINS - 1)] += 1
    top, bottom = 50, 232
    scale = LogScale(0, max(1, math.ceil(math.log10(max(*bins, 1)))), bottom - 14, top)
    parts = [text(LEFT, 16, _("positions (logarithmic)"), "small")]
    for decade in range(scale.high + 1):
        y = scale.at(10**decade)
        parts += [
            line(LEFT, y, RIGHT, y, "grid"),
            text(LEFT - 8, y + 4, count(10**decade), "small", "end"),
        ]
    parts += _bars(bins, span, scale, bottom)
    parts += _dp_axis(span, bottom)
    for share, value in figures.dp_percentiles:
        if share in (5, 95) and abs(value) <= span:
            early = share == 5
            x = _dp_place(value, span)
            parts.append(line(x, top - 18, x, bottom, "limit"))
            words = _("5 % are to the left") if early else _("5 % are to the right")
            left = x - LEFT > text_width(words) if early else RIGHT - x < text_width(words)
            parts.append(text(x + (-6 if left else 6), top - 9, words, "small", "end" if left else "start"))
    label = ngettext(
        "Histogram of the change of the right token's probability at {count} position: root mean square "
        "{rms}",
        "Histogram of the change of the right token's probability at {count} positions: root mean square "
        "{rms}",
        len(good),
        rms=small_percent(figures.dp_rms),
    )
    return figure(bottom + 48, label, parts)


def _dp_place(value: float, span: float) -> float:
    return LEFT + (RIGHT - LEFT) * (value / span + 1) / 2


def _bars(bins: Sequence[int], span: float, scale: LogScale, bottom: float) -> list[Markup]:
    width = (RIGHT - LEFT) / _BINS
    parts = []
    for at, amount in enumerate(bins):
        low, high = (2 * at / _BINS - 1) * span, (2 * (at + 1) / _BINS - 1) * span
        style = "loss" if high < 0 else "gain" if low > 0 else "even"
        if amount:
            y = scale.at(amount)
            words = ngettext(
                "{count} position: Δp {low} to {high}",
                "{count} positions: Δp {low} to {high}",
                amount,
                low=small_percent(low),
                high=small_percent(high),
            )
            parts.append(rect(LEFT + at * width + 0.8, y, width - 1.6, bottom - y, style, words))
    return parts


def _dp_axis(span: float, bottom: float) -> list[Markup]:
    places = ((-1.0, "start"), (-0.5, "middle"), (0.0, "middle"), (0.5, "middle"), (1.0, "end"))
    ticks = [
        text(
            _dp_place(span * at, span),
            bottom + 18,
            f"{number(100 * span * at, exact=True)} %",
            "small",
            anchor,
        )
        for at, anchor in places
    ]
    return [
        line(LEFT, bottom, RIGHT, bottom, "axis"),
        *ticks,
        text(LEFT, bottom + 38, _("← the file is less sure of the right token"), "small"),
        text(RIGHT, bottom + 38, _("the file is more sure of it →"), "small", "end"),
    ]
