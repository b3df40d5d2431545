"""How close a file is to its checkpoint, in a plain sentence."""

from __future__ import annotations

import math

from ..core.language import _, ngettext
from ..verify.measurements import Figures
from .text import number, percent, sentence


def in_plain_figures(figures: Figures) -> str:
    """How close the file is, in a plain sentence."""
    if not figures.positions:
        return _("Its predictions could not be compared anywhere in the text.")
    places = ngettext(
        "It predicts the same next token as the original at {share} of {count} place in the text",
        "It predicts the same next token as the original at {share} of {count} places in the text",
        figures.positions,
        share=percent(figures.same_top1, 1),
    )
    change = math.expm1(figures.log_ratio) if figures.log_ratio < 700 else math.inf
    if not math.isfinite(change):
        return sentence(places)
    if abs(change) < 5e-4:
        return _(
            "{places}; its perplexity (how surprised it is by the text) is the original's to within {share}.",
            places=places,
            share=percent(5e-4),
        )
    if change > 2:
        return _(
            "{places}; its perplexity (how surprised it is by the text) is {times} times the original's.",
            places=places,
            times=number(1 + change),
        )
    share = percent(abs(change), 1)
    if change > 0:
        return _(
            "{places}; its perplexity (how surprised it is by the text) is {share} higher.",
            places=places,
            share=share,
        )
    return _(
        "{places}; its perplexity (how surprised it is by the text) is {share} lower.",
        places=places,
        share=share,
    )
