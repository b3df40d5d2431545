"""The figures of the logits part as rows of a table, and the gate in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..core.language import Phrase, _, phrase, translated
from ..verify.measurements import Figures
from ..verify.proof import Gate
from .text import count, number, percent, small_percent, with_error


def _other_first(figures: Figures) -> str:
    if not figures.other_top1:
        return ""
    amount, lead = count(figures.other_top1), number(figures.other_top1_lead)
    return _("{count}, lead ≤ {lead}", count=amount, lead=lead)


# Figure (as in measurements.Figures), its title, how it is shown, what it says.
_ROWS: tuple[tuple[str, Phrase, Callable[[Figures], str], Phrase], ...] = (
    ("kl_mean", phrase("KL divergence, mean"), lambda f: with_error(f.kl_mean, f.kl_mean_error),
     phrase("how far apart the predictions are, in nats; 0 is equal")),
    ("kl_median", phrase("KL divergence, median"), lambda f: number(f.kl_median),
     phrase("at a typical position")),
    ("kl_99", phrase("KL divergence, 99\u00a0%"), lambda f: number(f.kl_99),
     phrase("one position in a hundred is above")),
    ("kl_999", phrase("KL divergence, 99.9\u00a0%"), lambda f: number(f.kl_999), phrase("one in a thousand")),
    ("kl_max", phrase("KL divergence, largest"), lambda f: number(f.kl_max),
     phrase("the worst position of all")),
    ("same_top1", phrase("Same first choice"),
     lambda f: f"{percent(f.same_top1)} ± {percent(f.same_top1_error)}",
     phrase("both predict the same next token")),
    ("other_top1", phrase("Another first choice"), _other_first,
     phrase("positions, and by how many logits the checkpoint's choice led there at most; almost none in a "
            "tie")),
    ("top5_overlap", phrase("Overlap of the five most likely"), lambda f: percent(f.top5_overlap),
     phrase("share of the five that both have")),
    ("dp_rms", phrase("Δp, root mean square"), lambda f: small_percent(f.dp_rms),
     phrase("change in the right token's probability")),
    ("dp_mean", phrase("Δp, mean"), lambda f: small_percent(f.dp_mean, sign=True),
     phrase("below zero: less sure")),
    ("perplexity", phrase("Perplexity, checkpoint → file"),
     lambda f: f"{number(f.perplexity_reference, 5)} → {number(f.perplexity_file, 5)}",
     phrase("how surprised each is by the text")),
    ("perplexity_increase", phrase("Perplexity, increase"),
     lambda f: number(f.perplexity_file - f.perplexity_reference),
     phrase("file minus checkpoint; varies by text")),
    ("log_ratio", phrase("Perplexity, ln(file / checkpoint)"),
     lambda f: with_error(f.log_ratio, f.log_ratio_error), phrase("0 is equal")),
    ("nll", phrase("NLL per token, checkpoint → file"),
     lambda f: f"{number(f.nll_reference, 7)} → {number(f.nll_file, 7)}", phrase("the same in nats")),
    ("nmse", phrase("Logits, NMSE"), lambda f: number(f.nmse),
     phrase("squared difference over the checkpoint's variance")),
    ("nmse_same_gelu", phrase("Logits, NMSE, same arithmetic"),
     lambda f: "" if f.nmse_same_gelu is None else number(f.nmse_same_gelu),
     phrase("the same when fp32 computes as llama.cpp is known to (its 16-bit table of GELU): what is left "
            "is not due to that")),
    ("logit_rms", phrase("Logits, RMS difference"), lambda f: number(f.logit_rms), phrase("in logits")),
    ("logit_max", phrase("Logits, largest difference"), lambda f: number(f.logit_max),
     phrase("in logits, over all tokens and positions")),
)  # fmt: skip


@dataclass(frozen=True)
class FigureRow:
    """A line of the table of figures; ``limits`` is empty where the gate does not look at it."""

    key: str
    name: str
    value: str
    limits: tuple[str, ...]
    meaning: str

    @property
    def gate(self) -> str:
        """``warns above 0.15, fails above 0.45``."""
        return ", ".join(self.limits)


def figure_rows(figures: Figures, gate: Gate | None) -> list[FigureRow]:
    """The figures there are as rows, the gate beside the one it judges; dashes where nothing was measured."""
    measure, limits = (None, ()) if gate is None else (gate.measure, gate_limits(gate))
    return [
        FigureRow(
            key,
            translated(name),
            shown(figures) if figures.positions else "–",
            limits if key == measure else (),
            translated(meaning),
        )
        for key, name, shown, meaning in _ROWS
        if shown(figures)
    ]


def gate_name(gate: Gate) -> str:
    """What people call the figure the gate judges."""
    return "NMSE" if gate.measure == "nmse" else _("mean KL")


def gate_limits(gate: Gate) -> tuple[str, ...]:
    """``warns above 0.15`` and ``fails above 0.45``, or one of them."""
    warns = _("warns above {limit}", limit=number(gate.warns, exact=True))
    if gate.fails is None:
        return (warns,)
    fails = _("fails above {limit}", limit=number(gate.fails, exact=True))
    return (warns, fails) if gate.fails > gate.warns else (fails,)


def gate_words(gate: Gate) -> str:
    """``warns above 0.15, fails above 0.45``."""
    return ", ".join(gate_limits(gate))


def gate_value(figures: Figures, gate: Gate) -> float:
    """The figure the gate judges."""
    return figures.nmse if gate.measure == "nmse" else figures.kl_mean


def gelu_words(figures: Figures) -> str:
    """What is left of the NMSE without llama.cpp's own arithmetic; nothing where that was not measured."""
    left = figures.nmse_same_gelu
    return "" if left is None else _("; {left} with llama.cpp's arithmetic in fp32", left=number(left))


def percentile_rows(figures: Figures) -> list[tuple[str, str]]:
    """Percentiles of Δp with their values."""
    return [
        (f"{number(share, exact=True)}\u00a0%", small_percent(value, sign=True))
        for share, value in figures.dp_percentiles
    ]
