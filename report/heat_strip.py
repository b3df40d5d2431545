"""The error of every tensor as a strip: layers across, kinds of tensor down, the rest beside."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import median

from markupsafe import Markup

from ..core.language import _, ngettext
from ..verify.proof import TensorError
from .names import state_word
from .svg import WIDTH, figure, line, rect, short, text, text_width
from .text import number, percent, plain

SHADES = 8  # .shade-0 (exact) to .shade-7 in report.css
_LAYER = re.compile(r"(^|\.)blk\.\d+\.")
_LEFT, _ROW = 128, 20
_LEAST_RANGE = 4.0  # of the shades: from the lightest to the darkest
_MOST_KINDS, _MOST_LAYERS, _MOST_OTHERS = 40, 512, 24
_ORDER = (
    "attn_norm", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_norm", "ffn_gate", "ffn_up",
    "ffn_down",
)  # fmt: skip


def kind_of(name: str) -> str:
    """``blk.3.attn_q.weight`` is an ``attn_q``; ``dec.blk.0.attn_k.bias`` a ``dec.attn_k.bias``."""
    return _LAYER.sub(r"\1", name).removesuffix(".weight")


def heat_strip(tensors: Sequence[TensorError]) -> Markup:
    """Darker cells are farther from the checkpoint; a dot says other bytes, a cross says wrong."""
    inner = [tensor for tensor in tensors if tensor.layer is not None]
    outer = [tensor for tensor in tensors if tensor.layer is None]
    layers = sorted({tensor.layer for tensor in inner if tensor.layer is not None})[:_MOST_LAYERS]
    kinds = _kinds(inner)
    scale = _Shades(tensors)
    parts = scale.legend(16)
    y = 62.0
    if inner:
        parts += _layer_numbers(layers, y - 6)
        column = {layer: at for at, layer in enumerate(layers)}
        row = {kind: at for at, kind in enumerate(kinds)}
        width = _cell_width(len(layers))
        parts += [
            text(_LEFT - 8, y + _ROW * at + 14, _clipped(kind), "small", "end") for kind, at in row.items()
        ]
        for tensor in inner:
            kind = kind_of(tensor.name)
            if kind in row and tensor.layer in column:
                parts += scale.cell(tensor, _LEFT + width * column[tensor.layer], y + _ROW * row[kind], width)
        y += _ROW * len(kinds) + 14
    more, y = _beside(outer, scale, y)
    parts += more
    states = {
        state: sum(tensor.state == state for tensor in tensors)
        for state in ("identical", "within", "not compared", "differs")
    }
    words = ", ".join(
        _("{count} {state}", count=amount, state=state_word(state))
        for state, amount in states.items()
        if amount or state != "not compared"
    )
    label = ngettext(
        "Error of {count} tensor by layer and kind: {states}",
        "Error of {count} tensors by layer and kind: {states}",
        len(tensors),
        states=words,
    )
    return figure(y, label, parts)


def _kinds(tensors: Sequence[TensorError]) -> list[str]:
    """Kinds in the order of the computation, those unknown after them as they come."""
    kinds = list(dict.fromkeys(kind_of(tensor.name) for tensor in tensors))
    rank = {name: at for at, name in enumerate(_ORDER)}
    kinds.sort(key=lambda kind: rank.get(kind.removesuffix(".bias"), len(_ORDER)))
    return kinds[:_MOST_KINDS]


def _clipped(kind: str) -> str:
    kind = kind.replace("cross_attn_", "cross_")
    return plain(kind if len(kind) <= 16 else f"{kind[:15]}…")


def _cell_width(layers: int) -> float:
    return min((WIDTH - 14 - _LEFT) / max(layers, 1), 40)


def _layer_numbers(layers: Sequence[int], y: float) -> list[Markup]:
    width = _cell_width(len(layers))
    step = max(1, math.ceil(text_width(str(max(layers)) + " ") / width))
    parts = [text(_LEFT - 8, y, _("layer"), "small faint", "end")]
    for at in range(0, len(layers), step):
        parts.append(text(_LEFT + width * (at + 0.5), y, str(layers[at]), "small faint", "middle"))
    return parts


def _beside(tensors: Sequence[TensorError], scale: _Shades, y: float) -> tuple[list[Markup], float]:
    """Tensors outside the layers, each with its name, in lines."""
    parts: list[Markup] = []
    x = float(_LEFT)
    for at, tensor in enumerate(tensors[:_MOST_OTHERS]):
        name = plain(kind_of(tensor.name), 40)
        needed = 30 + text_width(name) + 22
        if at and x + needed > WIDTH:
            x, y = float(_LEFT), y + _ROW + 6
        parts += scale.cell(tensor, x, y, 24)
        parts.append(text(x + 30, y + 14, name, "small"))
        x += needed
    if len(tensors) > _MOST_OTHERS:
        y += _ROW + 6
        more = _("and {count} more outside the layers", count=len(tensors) - _MOST_OTHERS)
        parts.append(text(_LEFT, y + 14, more, "small"))
    return parts, y + (_ROW + 8 if tensors else 0)


class _Shades:
    """Errors to shades: white is exact, then equal steps of the logarithm over the errors there are."""

    def __init__(self, tensors: Sequence[TensorError]) -> None:
        errors = [t.error for t in tensors if t.state != "differs" and math.isfinite(t.error) and t.error > 0]
        self.low = max(min(errors, default=1e-3), max(errors, default=1.0) * 1e-4)
        self.high = max(errors, default=self.low)
        if self.high < self.low * _LEAST_RANGE:  # small differences are no news
            middle = math.sqrt(self.low * self.high)
            self.low, self.high = middle / math.sqrt(_LEAST_RANGE), middle * math.sqrt(_LEAST_RANGE)
        self.empty = not errors
        self.own = {
            name: median(tensor.own_error for tensor in tensors if tensor.format == name)
            for name in dict.fromkeys(tensor.format for tensor in tensors)
        }

    def shade(self, error: float) -> int:
        if error == 0:
            return 0
        if not math.isfinite(error):
            return SHADES - 1
        share = math.log(max(error, self.low) / self.low) / math.log(self.high / self.low)
        return 1 + min(int(share * (SHADES - 1)), SHADES - 2)

    def cell(self, tensor: TensorError, x: float, y: float, width: float) -> list[Markup]:
        """A cell with its tooltip, and a mark where the state is not the plain one."""
        right, bottom = x + width - 1, y + _ROW - 2
        style = "differs" if tensor.state == "differs" else f"shade-{self.shade(tensor.error)}"
        parts = [rect(x, y, width - 1, _ROW - 2, f"cell {style}", _described(tensor))]
        if tensor.state == "differs":
            middle, half = (x + right) / 2, min(width - 1, _ROW - 2) / 2 - 1
            cross = f"M{short(middle - half)} {y + 4:g}L{short(middle + half)} {bottom - 4:g}"
            cross += f"M{short(middle + half)} {y + 4:g}L{short(middle - half)} {bottom - 4:g}"
            parts.append(Markup('<path class="cross" d="{}"/>').format(cross))
        elif tensor.state in ("within", "not compared"):
            radius = short(min(2.4, (width - 1) / 3))
            dot = '<circle class="other-bytes{}" cx="{}" cy="{}" r="{}"/>'
            dark = " on-dark" if self.shade(tensor.error) >= 4 else ""
            parts.append(Markup(dot).format(dark, short((x + right) / 2), short((y + bottom) / 2), radius))
        return parts

    def legend(self, y: float) -> list[Markup]:
        """Shades with the errors at their ends, the formats' own errors on them, and the marks."""
        parts = [text(_LEFT - 8, y + 2, _("error ‖ŵ−w‖/‖w‖"), "small", "end")]
        parts += [rect(_LEFT, y - 9, 30, 14, "cell shade-0"), text(_LEFT + 36, y + 2, _("exact"), "small")]
        x, width = _LEFT + 86.0, 30
        if not self.empty:
            low = number(self.low, 2)
            parts.append(text(x, y + 2, low, "small"))
            x += text_width(low) + 8
            for at in range(1, SHADES):
                parts.append(rect(x + width * (at - 1), y - 9, width - 1, 14, f"cell shade-{at}"))
            reach = width * (SHADES - 1)
            for name, own in list(self.own.items())[:3]:
                if own > self.low:
                    share = min(math.log(own / self.low) / math.log(self.high / self.low), 1.0)
                    place = x + reach * share
                    parts.append(line(place, y - 12, place, y + 9, "needle"))
                    anchor = "end" if share > 0.5 else "start"
                    words = _("{format} itself {error}", format=plain(name, 12), error=number(own, 2))
                    parts.append(text(place, y + 21, words, "small", anchor))
                    break
            x += reach + 8
            high = number(self.high, 2)
            parts.append(text(x, y + 2, high, "small"))
            x += text_width(high) + 24
        else:
            x += 10
        parts += [rect(x, y - 9, 24, 14, "cell shade-1")]
        parts.append(
            Markup('<circle class="other-bytes" cx="{}" cy="{}" r="2.4"/>').format(short(x + 12), y - 2)
        )
        within = _("within, other bytes")
        parts.append(text(x + 30, y + 2, within, "small"))
        x += 30 + text_width(within) + 16
        parts += [rect(x, y - 9, 24, 14, "cell differs")]
        cross = f"M{short(x + 7)} {y - 6:g}l10 8m0 -8l-10 8"
        parts.append(Markup('<path class="cross" d="{}"/>').format(cross))
        parts.append(text(x + 30, y + 2, state_word("differs"), "small"))
        return parts


def _described(tensor: TensorError) -> str:
    name = plain(tensor.format, 20)
    parts = [
        _(
            "{tensor} ({format}): {state}, error {error}",
            tensor=plain(tensor.name, 80),
            format=name,
            state=state_word(tensor.state),
            error=number(tensor.error),
        )
    ]
    if tensor.own_error > 0:
        parts[0] += " (" + _("{format} itself {error}", format=name, error=number(tensor.own_error)) + ")"
    if tensor.error > 0:
        error = number(tensor.worst_row_error)
        parts.append(_("worst row {row} with {error}", row=tensor.worst_row, error=error))
    if tensor.state == "differs":
        slope = number(tensor.slope, 4)
        parts.append(_("slope {slope}, {share} off", slope=slope, share=percent(tensor.error)))
    return ", ".join(parts)
