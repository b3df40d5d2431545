"""A proof as people read it in a terminal: parts, findings, figures, worst tokens, verdict.

The words and figures are those of the report (report/words.py); here they are laid out in columns.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import click

from ..report.published import published
from ..report.text import number, percent
from ..report.words import (
    advice,
    figure_rows,
    gate_name,
    gate_value,
    gelu_words,
    loss_words,
    part_line,
    shares_words,
    stands_on,
)
from ..verify.measurements import Guess, WorstToken
from ..verify.proof import Diagnosis, Finding, LayerError, LogitsPart, Proof, layer_name
from .console import count_text, plural, printable, seconds_text, table, width

_FINDINGS = 12
_WORST = 3
_LAYERS = 12  # of more, those around the first that departs are shown
_NOTHING = 1e-4  # nats; what differs by less is arithmetic, and no token is worth showing for it
_BEFORE, _TOKEN = 36, 24  # columns of text before a token, and of the token
_RIGHT = {
    "passed": "right",
    "warned": "right, with warnings",
    "not run": "not checked",
    "not decided": "not decided",
    "failed": "wrong",
}
_COLOURS = {"passed": "green", "warned": "yellow", "not decided": "yellow", "failed": "red"}


def proof_text(proof: Proof) -> str:
    """Everything worth reading of ``proof`` on a terminal, the verdict last, where people look."""
    weights = count_text(proof.parameters)
    parts = [
        (name, part.verdict, _logits(part) if isinstance(part, LogitsPart) else _plain(part_line(part)))
        for name, part in proof.parts.items()
    ]
    sections = [
        printable(f"{proof.artifact}: {proof.arch}, {proof.type}, {weights} weights")
        + "\n"
        + printable(f"against {proof.checkpoint}"),
        table(parts),
        _findings(proof),
        _figures(proof.logits),
        _worst(proof.logits.worst),
        _diagnosis(proof.logits.diagnosis),
        "\n".join(printable(f"note: {note}") for note in proof.notes),
        _verdict(proof),
    ]
    return _coloured("\n\n".join(section for section in sections if section))


def proof_line(proof: Proof) -> str:
    """One line for a file: the verdict, whether it is right, what it loses, and on which text that stands."""
    return _coloured(printable(f"{proof.type.upper()}: {proof.verdict}: {_summary(proof)}"))


def _summary(proof: Proof) -> str:
    """``right; loses little (mean KL 0.003 on 512 tokens of the built-in texts, …)``, with the cause."""
    parts = [_RIGHT[proof.right]]
    if proof.verdict != "passed" and proof.cause is not None:
        parts.append(proof.cause)
    if proof.logits.figures is not None and proof.logits.figures.positions:
        parts.append(f"{loss_words(proof.logits)} ({_logits(proof.logits)}; {stands_on(proof)})")
        parts.append(_plain(advice(proof.logits)))
    return "; ".join(part for part in parts if part)


def _logits(part: LogitsPart) -> str:
    """What most people want to know of the logits."""
    figures, gate = part.figures, part.gate
    if figures is None or not figures.positions:
        return part.findings[0].message if part.findings else part_line(part)
    measured = f"mean KL {_number(figures.kl_mean)}"
    if gate is not None:
        value, gelu = _number(gate_value(figures, gate)), _plain(gelu_words(figures))
        more = "".join(
            f"; {way} {_number(gate_value(figures, gate))}"
            for way, figures in (("token by token", part.stepwise), ("padded", part.padded))
            if figures is not None
        )
        measured = f"{gate_name(gate)} {value} (gate {gate.warns:g}{gelu}{more})"
    return (
        f"{measured}, same top token {_percent(figures.same_top1)}, perplexity "
        f"{_number(figures.perplexity_file, 4)} against {_number(figures.perplexity_reference, 4)}"
    )


def _number(value: float, digits: int = 3) -> str:
    return _plain(number(value, digits))


def _percent(share: float, digits: int = 1) -> str:
    return _plain(percent(share, digits))


def _plain(text: str) -> str:
    """With ordinary spaces: the report's do not break lines, and a terminal's would be shown as escapes."""
    return text.replace("\xa0", " ")


def _findings(proof: Proof) -> str:
    """A dozen of the findings, the gravest, and of every part the first before the second of any."""
    ranked = [
        (not finding.grave, at, name, finding)
        for name, part in proof.parts.items()
        for at, finding in enumerate(sorted(part.findings, key=lambda finding: not finding.grave))
    ]
    if not ranked:
        return ""
    ranked.sort(key=lambda item: item[:2])
    shown = sorted(ranked[:_FINDINGS], key=lambda item: (item[0], list(proof.parts).index(item[2])))
    lines = ["Findings"]
    for mild, _, name, finding in shown:
        lines.append(printable(f"  {name}{' (warning)' if mild else ''}: {_finding(finding, name)}"))
    if len(ranked) > _FINDINGS:
        lines.append(f"  … and {len(ranked) - _FINDINGS:,} more; --json or --report shows all")
    return "\n".join(lines)


def _finding(finding: Finding, part: str) -> str:
    """One sentence with the place and both values, none repeated, after the name of the part."""
    place = (
        "" if finding.where in (None, "", part) or finding.where in finding.message else f"{finding.where}: "
    )
    values = [
        f"{word} {value}"
        for word, value in (("expected", finding.expected), ("found", finding.found))
        if value is not None and value not in finding.message
    ]
    return f"{place}{finding.message}" + (f" ({', '.join(values)})" if values else "")


def _figures(part: LogitsPart) -> str:
    """The figures, the gate, and what others measured for the type, side by side."""
    if part.figures is None or not part.figures.positions:
        return ""
    others = published(part.gate)
    header = ("  figure", "this file", "gate", *others.columns)
    rows = [
        [
            f"  {row.name}",
            row.value,
            row.gate,
            *(others.cells.get((row.key, at), "") for at in others.columns),
        ]
        for row in figure_rows(part.figures, part.gate)
    ]
    rows = [[_plain(cell) for cell in row] for row in rows]
    read = f"{plural(part.figures.positions, 'position')} of {plural(part.figures.windows, 'window')}"
    lines = [f"Logits at {read}", table(rows, header=header, right=(1, *range(3, len(header))))]
    if part.gate is not None:
        lines.append(printable(f"  the gate: {part.gate.source}"))
    if part.shares is not None:
        lines.append(f"  {_plain(shares_words(part.shares))}")
    return "\n".join(lines)


def _worst(worst: Sequence[WorstToken]) -> str:
    """The positions with the largest divergence, in their context."""
    shown = [token for token in worst[:_WORST] if not token.kl < _NOTHING]  # NaN is shown
    if not shown:
        return ""
    lines = ["Where file and checkpoint disagree most"]
    for token in shown:
        right = f"{_percent(token.right.probability)}, file {_percent(token.right_file)}"
        if token.source:
            lines.append(f"  given: {_start(printable(token.source), 2 * _BEFORE)}")
        lines += [
            f"  {_end(printable(token.before), _BEFORE)} → {_quoted(token.right)}",
            f"    probability of the right token: checkpoint {right}; KL {_number(token.kl)}",
            f"    checkpoint: {_guesses(token.reference)}",
            f"    file:       {_guesses(token.file)}",
        ]
    return "\n".join(lines)


def _guesses(guesses: Sequence[Guess]) -> str:
    return ", ".join(f"{_quoted(guess)} {_percent(guess.probability)}" for guess in guesses[:3])


def _quoted(guess: Guess) -> str:
    """The text of a token; of one that has none, or only a part of a syllable, the number."""
    text = printable(guess.text)
    if not text or "\ufffd" in text:
        return f"token {guess.token}"
    return f'"{_start(text, _TOKEN)}"'


def _start(text: str, columns: int) -> str:
    """The beginning of ``text`` that fits in ``columns``."""
    end = 0
    while end < len(text) and width(text[: end + 1]) <= columns:
        end += 1
    return text if end == len(text) else f"{text[:end]}…"


def _end(text: str, columns: int) -> str:
    """The end of ``text`` that fits in ``columns``."""
    start = len(text)
    while start > 0 and width(text[start - 1 :]) <= columns:
        start -= 1
    return text if start == 0 else f"…{text[start:]}"


def _diagnosis(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return ""
    layers = _nearby(diagnosis.layers, diagnosis.first)
    encoder = diagnosis.encoder_layers
    rows = [
        (f"  {layer_name(layer.layer, encoder)}", _number(layer.weights), _number(layer.runtime))
        for layer in layers
    ]
    rows.append(("  logits", _number(diagnosis.logits_weights), _number(diagnosis.logits_runtime)))
    if diagnosis.logits_same_gelu is not None:
        rows.append(("  logits, with llama.cpp's GELU in fp32", "", _number(diagnosis.logits_same_gelu)))
    header = ("  NMSE of", "by the weights", "by the runtime")
    lines = ["Layer by layer", table(rows, header=header, right=(1, 2))]
    if len(layers) < len(diagnosis.layers):
        lines.append(
            f"  ({len(layers)} of {plural(len(diagnosis.layers), 'layer')}; --json or --report shows all)"
        )
    return "\n".join([*lines, printable(f"  {diagnosis.conclusion}")])


def _nearby(layers: Sequence[LayerError], first: int | None) -> list[LayerError]:
    """All layers where they are few, else those around the first that departs, and the last."""
    if len(layers) <= _LAYERS:
        return list(layers)
    middle = next((at for at, layer in enumerate(layers) if layer.layer == first), 0)
    start = min(max(middle - 3, 0), len(layers) - _LAYERS)
    return [*layers[start : start + _LAYERS - 1], layers[-1]]


def _verdict(proof: Proof) -> str:
    took = f" ({seconds_text(proof.seconds)})" if proof.seconds else ""
    return f"verdict: {proof.verdict}{took}: {printable(_summary(proof))}"


def _coloured(text: str) -> str:
    """The verdicts in colour; click takes the colours out where there is no terminal."""
    if os.environ.get("NO_COLOR"):
        return text

    def styled(match: re.Match[str]) -> str:
        return f"{match[1]}{click.style(match[2], fg=_COLOURS[match[2]], bold=True)}"

    return re.sub(r"^(\S+ +)(passed|warned|not decided|failed)\b", styled, text, flags=re.MULTILINE)
