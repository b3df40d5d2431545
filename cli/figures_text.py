"""The figures of a proof as a table: what this file gives, its gate, and what others measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .console import plural, printable, table

if TYPE_CHECKING:
    from ..verify.proof import Figures, Gate, LogitsPart


def number(value: float) -> str:
    """Three digits: ``0.034``, ``3.1e-11``."""
    return f"{value:.3g}"


def percent(share: float, *, signed: bool = False) -> str:
    """``93.1 %``; never rounded to a hundred that it is not."""
    value = 100 * share
    digits = 1
    while digits < 4 and share < 1 and f"{value:.{digits}f}".startswith("100."):
        digits += 1
    return f"{value:{'+' if signed else ''}.{digits}f} %"


def perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1e6 else f"{value:.3g}"


def figures_text(part: LogitsPart) -> str:
    """The figures, the gate and what others measured for the type, side by side."""
    if part.figures is None:
        return ""
    rows = [
        (f"  {name}", value, limit, published)
        for name, value, limit, published in _figure_rows(part.figures, part.gate)
    ]
    positions = f"{plural(part.figures.positions, 'position')} in {plural(part.figures.windows, 'window')}"
    columns = [1, 2, 3] if any(row[3] for row in rows) else [1, 2]
    header = ("figure", "this file", "gate", "published")
    shown = [[row[0], *(row[column] for column in columns)] for row in rows]
    lines = [f"Logits over {positions}"]
    lines.append(
        table(shown, header=[f"  {header[0]}", *(header[column] for column in columns)], right=columns)
    )
    if part.gate is not None and part.gate.source:
        lines.append(printable(f"  gate and published figures: {part.gate.source}"))
    return "\n".join(lines)


def _figure_rows(figures: Figures, gate: Gate | None) -> list[tuple[str, str, str, str]]:
    """Name, value, gate and published figure of each."""
    published = {} if gate is None else gate.published

    def limit(measure: str) -> str:
        if gate is None or gate.measure != measure:
            return ""
        fails = "" if gate.fails is None else f", fails above {number(gate.fails)}"
        return f"{number(gate.warns)}{fails}"

    def other(key: str) -> str:
        value = published.get(key)
        return "" if value is None else number(value) if isinstance(value, float) else str(value)

    f = figures
    kl = f"{number(f.kl_mean)} ± {number(f.kl_mean_error)}"
    top = f"{percent(f.same_top1)} ± {percent(f.same_top1_error)}"
    ratio = f"{f.log_ratio:+.3g} ± {number(f.log_ratio_error)}"
    return [
        ("mean KL divergence", kl, limit("kl_mean"), other("kl_mean")),
        ("median", number(f.kl_median), "", other("kl_median")),
        ("99 % of positions below", number(f.kl_99), "", other("kl_99")),
        ("99.9 % of positions below", number(f.kl_999), "", other("kl_999")),
        ("largest", number(f.kl_max), "", other("kl_max")),
        ("same top token", top, "", other("same_top1")),
        ("top five in common", percent(f.top5_overlap), "", other("top5_overlap")),
        ("Δp of the right token, mean", percent(f.dp_mean, signed=True), "", other("dp_mean")),
        ("Δp of the right token, RMS", percent(f.dp_rms), "", other("dp_rms")),
        ("perplexity of the checkpoint", perplexity(f.perplexity_reference), "", ""),
        ("perplexity of the file", perplexity(f.perplexity_file), "", other("perplexity")),
        ("ln of their ratio", ratio, "", other("log_ratio")),
        ("largest logit difference", number(f.logit_max), "", ""),
        ("RMS logit difference", number(f.logit_rms), "", ""),
        ("NMSE of the logits", number(f.nmse), limit("nmse"), other("nmse")),
    ]  # fmt: skip
