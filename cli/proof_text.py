"""A proof as people read it in a terminal: parts, findings, figures, worst tokens, verdict.

The words and figures are those of the report (report/words.py); here they are laid out in columns.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..core.language import _, ngettext, translated
from ..report.figure_words import figure_rows, gate_name, gate_value, gelu_words
from ..report.names import PARTS, VERDICTS, is_right, part_name, verdict_word
from ..report.published import published
from ..report.text import large, number, percent
from ..report.words import advice, cause, loss_words, part_line, shares_words, stands_on
from ..verify.measurements import Guess, WorstToken
from ..verify.proof import Diagnosis, Finding, LayerError, LogitsPart, Part, Proof, layer_name
from .console import printable, seconds_text, table, width
from .embeddings_text import embeddings_figures, worst_texts
from .layout import columns, wrapped
from .verdict_colours import coloured

_FINDINGS = 12
_WORST = 3
_LONG = ("not decided", "not compared")  # and rare: columns are not made for them
_LAYERS = 12  # of more, those around the first that departs are shown
_NOTHING = 1e-4  # nats; what differs by less is arithmetic, and no token is worth showing for it
_BEFORE, _TOKEN = 36, 24  # columns of text before a token, and of the token


def proof_head(artifact: Path, type: str, checkpoint: Path, arch: str, parameters: int) -> str:
    """What is proven against what."""
    what = printable(f"{artifact}: {arch}, {type}, {_weights(parameters)}")
    return _fitted(f"{what}\n{printable(_('against {checkpoint}', checkpoint=checkpoint))}")


def part_text(name: str, part: Part) -> str:
    """A line for a part of the proof; those of all parts stand in columns."""
    name_size = max(width(part_name(each)) for each in PARTS)
    verdict_size = max(width(verdict_word(each)) for each in VERDICTS if each not in _LONG)
    words = verdict_word(part.verdict)
    line = _logits(part) if isinstance(part, LogitsPart) else _plain(part_line(part))
    begin = f"{_padded(part_name(name), name_size)}  {_padded(words, verdict_size)}  "
    return coloured(_fitted(printable(f"{begin}{line}"), width(begin)))


def _padded(text: str, size: int) -> str:
    return text + " " * (size - width(text))


def _fitted(text: str, indent: int = 2) -> str:
    return wrapped(text, columns(sys.stdout), indent)


def proof_rest(proof: Proof) -> str:
    """Everything below the parts: findings, figures, where it went wrong.

    The verdict is the last of it, where people look.
    """
    sections = [
        _findings(proof),
        *(
            (_figures(proof.logits), _worst(proof.logits.worst))
            if proof.embeddings is None
            else (embeddings_figures(proof.embeddings), worst_texts(proof.embeddings))
        ),
        _diagnosis(proof.logits.diagnosis),
        "\n".join(printable(_("note: {note}", note=note)) for note in proof.notes),
        _verdict(proof),
    ]
    return coloured(_fitted("\n\n".join(section for section in sections if section)))


def proof_line(proof: Proof, label: str | None = None) -> str:
    """One line for a file: the verdict, whether it is right, what it loses, and on which text that stands.

    ``label`` is what the file is called, if not by its type.
    """
    line = f"{label or proof.type.upper()}: {verdict_word(proof.verdict)}: {_summary(proof)}"
    return coloured(_fitted(printable(line)))


def _weights(amount: int) -> str:
    """``1.44 billion (1,439,270,912) weights``."""
    short, exact = large(amount), f"{amount:,}"
    if short == exact:
        return ngettext("{number} weight", "{number} weights", amount, number=exact)
    return _("{short} ({exact}) weights", short=short, exact=exact)


def _summary(proof: Proof) -> str:
    """``right; loses little (mean KL 0.003 on 512 tokens of the built-in texts, …)``, with the cause.

    Behind the verdict: what would only repeat it (``not decided``) is left out.
    """
    answer = is_right(proof.right)
    parts = [] if answer == verdict_word(proof.verdict) and proof.telling else [answer]
    if proof.verdict != "passed":
        parts.append(cause(proof))
    if proof.embeddings is not None and (words := loss_words(proof.embeddings)):
        parts.append(f"{words} ({_plain(part_line(proof.embeddings))}; {stands_on(proof)})")
    if proof.logits.figures is not None and proof.logits.figures.positions:
        parts.append(f"{loss_words(proof.logits)} ({_logits(proof.logits)}; {stands_on(proof)})")
        parts.append(_plain(advice(proof.logits)))
    return "; ".join(part for part in parts if part)


def _logits(part: LogitsPart) -> str:
    """What most people want to know of the logits."""
    figures, gate = part.figures, part.gate
    if figures is None or not figures.positions:
        return translated(part.findings[0].message) if part.findings else part_line(part)
    measured = _("mean KL {value}", value=_number(figures.kl_mean))
    if gate is not None:
        value, gelu = _number(gate_value(figures, gate)), _plain(gelu_words(figures))
        more = ""
        if part.stepwise is not None:
            more += _("; token by token {value}", value=_number(gate_value(part.stepwise, gate)))
        if part.padded is not None:
            more += _("; padded {value}", value=_number(gate_value(part.padded, gate)))
        measured = _(
            "{figure} {value} (gate {limit}{more})",
            figure=gate_name(gate),
            value=value,
            limit=f"{gate.warns:g}",
            more=gelu + more,
        )
    return _(
        "{measured}, same top token {share}, perplexity {file} against {checkpoint}",
        measured=measured,
        share=_percent(figures.same_top1),
        file=_number(figures.perplexity_file, 4),
        checkpoint=_number(figures.perplexity_reference, 4),
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
    lines = [_("Findings")]
    for mild, _rank, name, finding in shown:
        what = _finding(finding, name)
        line = f"{part_name(name)}: {what}"
        if mild:
            line = _("{part} (warning): {finding}", part=part_name(name), finding=what)
        lines.append("  " + printable(line))
    if len(ranked) > _FINDINGS:
        more = f"{len(ranked) - _FINDINGS:,}"
        lines.append("  " + _("… and {count} more; --json or --report shows all", count=more))
    return "\n".join(lines)


def _finding(finding: Finding, part: str) -> str:
    """One sentence with the place and both values, none repeated, after the name of the part."""
    message = translated(finding.message)
    named = finding.where in (None, "", part) or finding.where in finding.message
    place = "" if named else f"{translated(finding.where)}: "
    values = []
    if finding.expected is not None and finding.expected not in finding.message:
        values.append(_("expected {value}", value=finding.expected))
    if finding.found is not None and finding.found not in finding.message:
        values.append(_("found {value}", value=finding.found))
    return f"{place}{message}" + (f" ({', '.join(values)})" if values else "")


def _figures(part: LogitsPart) -> str:
    """The figures, the gate, and what others measured for the type, side by side."""
    if part.figures is None or not part.figures.positions:
        return ""
    others = published(part.gate)
    header = ("  " + _("figure"), _("this file"), _("gate"), *others.columns)
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
    read = _(
        "Logits at {positions} of {windows}",
        positions=ngettext("{count} position", "{count} positions", part.figures.positions),
        windows=ngettext("{count} window", "{count} windows", part.figures.windows),
    )
    lines = [read, table(rows, header=header, right=(1, *range(3, len(header))))]
    if part.gate is not None:
        lines.append("  " + printable(_("the gate: {source}", source=part.gate.source)))
    if part.shares is not None:
        lines.append(f"  {_plain(shares_words(part.shares))}")
    return "\n".join(lines)


def _worst(worst: Sequence[WorstToken]) -> str:
    """The positions with the largest divergence, in their context."""
    shown = [token for token in worst[:_WORST] if not token.kl < _NOTHING]  # NaN is shown
    if not shown:
        return ""
    lines = [_("Where file and checkpoint disagree most")]
    for token in shown:
        if token.source:
            lines.append("  " + _("given: {text}", text=_start(printable(token.source), 2 * _BEFORE)))
        chances = _(
            "probability of the right token: checkpoint {checkpoint}, file {file}; KL {kl}",
            checkpoint=_percent(token.right.probability),
            file=_percent(token.right_file),
            kl=_number(token.kl),
        )
        lines += [
            f"  {_end(printable(token.before), _BEFORE)} → {_quoted(token.right)}",
            f"    {chances}",
            "    " + _("checkpoint: {guesses}", guesses=_guesses(token.reference)),
            "    " + _("file:       {guesses}", guesses=_guesses(token.file)),
        ]
    return "\n".join(lines)


def _guesses(guesses: Sequence[Guess]) -> str:
    return ", ".join(f"{_quoted(guess)} {_percent(guess.probability)}" for guess in guesses[:3])


def _quoted(guess: Guess) -> str:
    """The text of a token; of one that has none, or only a part of a syllable, the number."""
    text = printable(guess.text)
    if not text or "\ufffd" in text:
        return _("token {number}", number=guess.token)
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
        (f"  {translated(layer_name(layer.layer, encoder))}", _number(layer.weights), _number(layer.runtime))
        for layer in layers
    ]
    rows.append(("  " + _("logits"), _number(diagnosis.logits_weights), _number(diagnosis.logits_runtime)))
    if diagnosis.logits_same_gelu is not None:
        same = _("logits, with llama.cpp's GELU in fp32")
        rows.append((f"  {same}", "", _number(diagnosis.logits_same_gelu)))
    header = ("  " + _("NMSE of"), _("by the weights"), _("by the runtime"))
    lines = [_("Layer by layer"), table(rows, header=header, right=(1, 2))]
    if len(layers) < len(diagnosis.layers):
        total = ngettext("{count} layer", "{count} layers", len(diagnosis.layers))
        lines.append(
            "  " + _("({shown} of {layers}; --json or --report shows all)", shown=len(layers), layers=total)
        )
    return "\n".join([*lines, "  " + printable(translated(diagnosis.conclusion))])


def _nearby(layers: Sequence[LayerError], first: int | None) -> list[LayerError]:
    """All layers where they are few, else those around the first that departs, and the last."""
    if len(layers) <= _LAYERS:
        return list(layers)
    middle = next((at for at, layer in enumerate(layers) if layer.layer == first), 0)
    start = min(max(middle - 3, 0), len(layers) - _LAYERS)
    return [*layers[start : start + _LAYERS - 1], layers[-1]]


def _verdict(proof: Proof) -> str:
    took = f" ({seconds_text(proof.seconds)})" if proof.seconds else ""
    return printable(
        _(
            "verdict: {verdict}{took}: {summary}",
            verdict=verdict_word(proof.verdict),
            took=took,
            summary=_summary(proof),
        )
    )
