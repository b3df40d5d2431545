"""The report's signs and charts as SVG markup: verdicts, the gate, the error by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from ..core.language import _, ngettext
from ..verify.proof import Diagnosis, Gate, Verdict, layer_name
from .figure_words import gate_words
from .svg import (
    LEFT,
    RIGHT,
    LogScale,
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

_GATE_WIDTH = 480
_BOLD = 1.15  # as wide as plain type

_SIGNS: dict[Verdict, str] = {
    "passed": '<circle cx="12" cy="12" r="10.5"/><path d="M6.8 12.6l3.5 3.6 7-8"/>',
    "warned": '<path class="body" d="M12 1.8 23 21.6H1Z"/><path d="M12 8.6v6.4M12 18.2v.1"/>',
    "failed": '<path class="body" d="M7.4 1h9.2L23 7.4v9.2L16.6 23H7.4L1 16.6V7.4Z"/>'
    '<path d="M8 8l8 8M16 8l-8 8"/>',
    "not run": (_DASH := '<circle class="hollow" cx="12" cy="12" r="10"/><path class="dash" d="M7.5 12h9"/>'),
    "not compared": _DASH,
    "not decided": '<circle class="hollow" cx="12" cy="12" r="10"/>'
    '<path class="dash" d="M8.6 9.4a3.4 3.4 0 1 1 4.8 3.1c-1 .5-1.4 1-1.4 2.1M12 17.6v.1"/>',
}


def sign(verdict: Verdict) -> Markup:
    """The verdict's sign: tick, triangle, octagon, dash, question mark; distinguishable without colour."""
    return Markup('<svg class="sign" viewBox="0 0 24 24" aria-hidden="true">{}</svg>').format(
        Markup(_SIGNS[verdict])
    )


def bar(share: float) -> Markup:
    """A probability as a bar beside its number."""
    width = 60 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0
    return Markup(
        '<svg class="bar" viewBox="0 0 60 8" aria-hidden="true"><rect class="rest" width="60" height="8"/>'
        '<rect class="full" width="{}" height="8"/></svg>'
    ).format(short(width))


def gate_chart(value: float, gate: Gate, published: Sequence[tuple[str, float]], name: str) -> Markup:
    """The measure on a logarithmic line with the zones of the gate, and what others measured below it."""
    limits = [gate.warns, *([gate.fails] if gate.fails is not None else [])]
    known = [v for v in (value, *(v for _, v in published)) if math.isfinite(v) and v > 0]
    scale = log_scale([*known, *limits, limits[-1] * 3, limits[0] / 10], 10, _GATE_WIDTH - 10, decades=7)
    at = scale.at(value)
    top, bottom = 38, 66
    words = _("this file: {figure} {value}", figure=name, value=number(value))
    half = text_width(words) * _BOLD / 2
    parts = _zones(scale, gate, at, top, bottom - top)
    parts += [
        text(min(max(at, half), _GATE_WIDTH - half), 16, words, "strong", "middle"),
        Markup('<path class="pointer" d="M{0} {1}l-7 -13h14Z"/>').format(short(at), top + 1),
        line(at, top, at, bottom, "needle"),
    ]
    parts += [text(x, 84, label, "small", "middle") for x, label in scale.ticks()[1:-1]]
    below, height = _published_marks(published, scale, bottom)
    label = _(
        "{figure} {value} on the scale of the gate: {limits}",
        figure=name,
        value=number(value),
        limits=gate_words(gate),
    )
    return figure(height, label, parts + below, width=_GATE_WIDTH, style="gate")


def _published_marks(
    published: Sequence[tuple[str, float]], scale: LogScale, bottom: float
) -> tuple[list[Markup], float]:
    """Ticks with names, one line each so that none lies on another, and the height they need."""
    parts: list[Markup] = []
    height = 90.0
    for row, (name, value) in enumerate(sorted(published, key=lambda item: -item[1])):
        x, words = scale.at(value), f"{plain(name, 40)} {number(value, exact=True)}"
        y = 104 + 18 * row
        parts.append(line(x, bottom, x, y, "published"))
        room = _GATE_WIDTH - text_width(words)  # to the right of the tick, else left of it, else below
        if x + 5 > room > 0 and x - 5 < text_width(words):
            y += 12
            parts.append(text(room, y, words, "small"))
        else:
            left = x + 5 > room
            parts.append(text(x - 5 if left else x + 5, y, words, "small", "end" if left else "start"))
        height = y + 8
    return parts, height


def _zones(scale: LogScale, gate: Gate, needle: float, top: float, height: float) -> list[Markup]:
    """Bands of the gate with their words; those too narrow for the words go without."""
    edges: list[tuple[str, str, float]] = [(_("passes"), "zone-passed", scale.at(gate.warns))]
    if gate.fails is None:
        edges.append((_("warns"), "zone-warned", scale.end))
    elif gate.fails > gate.warns:
        edges += [
            (_("warns"), "zone-warned", scale.at(gate.fails)),
            (_("fails"), "zone-failed", scale.end),
        ]
    else:
        edges.append((_("fails"), "zone-failed", scale.end))
    parts: list[Markup] = []
    begin = scale.start
    for words, style, end in edges:
        parts.append(rect(begin, top, end - begin, height, style))
        if end - begin > text_width(words) + 12:
            left = needle > (begin + end) / 2  # where the needle does not cross them
            x = begin + 8 if left else end - 8
            parts.append(text(x, top + 19, words, "strong", "start" if left else "end"))
        begin = end
    parts += [line(scale.at(gate.warns), top - 4, scale.at(gate.warns), top + height + 4, "limit")]
    return parts


def layer_chart(diagnosis: Diagnosis) -> Markup:
    """The error of each layer's output by the weights and by the runtime, and that of the logits, as NMSE."""
    layers = diagnosis.layers
    top, bottom, end = 54, 246, RIGHT - 90
    rows = [(layer.weights, layer.runtime) for layer in layers]
    logits = (diagnosis.logits_weights, diagnosis.logits_runtime)
    scale = log_scale([value for row in (*rows, logits) for value in row], bottom, top, decades=12)
    x_of = [LEFT + 16 + (end - LEFT - 32) * i / max(len(layers) - 1, 1) for i in range(len(layers))]
    parts = level_lines(scale, LEFT, RIGHT)
    for x, layer in zip(x_of, layers, strict=True):
        if layer.layer == diagnosis.first:
            side = "end" if x > end - 180 else "start"
            parts += [line(x, top - 16, x, bottom, "first")]
            words = _("first to differ: {layer}", layer=layer_name(layer.layer, diagnosis.encoder_layers))
            parts += [text(x + (-7 if side == "end" else 7), top - 8, words, "strong", side)]
    for at, (name, marker) in enumerate((("weights", "round"), ("runtime", "square"))):
        points = [(x, scale.at(row[at])) for x, row in zip(x_of, rows, strict=True)]
        parts.append(path(points, f"series-{name}"))
        last = (end + 45 + 14 * at, scale.at(logits[at]))
        titles = [
            _by(name, layer_name(layer.layer, diagnosis.encoder_layers), row[at])
            for layer, row in zip(layers, rows, strict=True)
        ]
        for point, words in zip((*points, last), (*titles, _by(name, _("logits"), logits[at])), strict=True):
            parts.append(_marker(point, marker, f"point-{name}", words))
    parts.append(line(end + 10, top - 6, end + 10, bottom, "grid"))
    parts.append(text(end + 52, bottom + 18, _("logits"), "small", "middle"))
    step = max(1, math.ceil(len(layers) / 24))
    parts += [
        text(x, bottom + 18, str(layer.layer), "small", "middle")
        for x, layer in list(zip(x_of, layers, strict=True))[::step]
    ]
    parts.append(text((LEFT + end) / 2, bottom + 36, _("output of layer"), "small", "middle"))
    by_weights, by_runtime = _("by the file's weights (●)"), _("by the runtime (■)")
    parts += legend(LEFT, 16, [("series-weights", by_weights), ("series-runtime", by_runtime)])
    first = _("no layer stands out")
    if diagnosis.first is not None:
        first = _("{layer} differs first", layer=layer_name(diagnosis.first, diagnosis.encoder_layers))
    label = ngettext(
        "Error by layer over {count} layer: {first}",
        "Error by layer over {count} layers: {first}",
        len(layers),
        first=first,
    )
    return figure(bottom + 46, label, parts)


def _by(cause: str, what: str, error: float) -> str:
    if cause == "weights":
        return _("{what}, by weights: NMSE {value}", what=what, value=number(error))
    return _("{what}, by runtime: NMSE {value}", what=what, value=number(error))


def _marker(point: tuple[float, float], shape: str, style: str, title: str) -> Markup:
    x, y = point
    if shape == "square":
        return rect(x - 3, y - 3, 6, 6, style, title)
    return Markup('<circle class="{}" cx="{}" cy="{}" r="3.6"><title>{}</title></circle>').format(
        style, short(x), short(y), title
    )
