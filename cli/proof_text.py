"""A proof as people read it in a terminal: parts, findings, figures, worst tokens, verdict."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from .console import count_text, plural, printable, seconds_text, table, width
from .figures_text import figures_text, number, percent, perplexity

if TYPE_CHECKING:
    from ..verify.proof import (
        Diagnosis,
        Finding,
        Guess,
        LayerError,
        LogitsPart,
        MetadataPart,
        Proof,
        TokensPart,
        WeightsPart,
        WorstToken,
    )
    from ..vocab.parity import Parity

_FINDINGS = 12
_WORST = 3
_LAYERS = 12  # more are shown around the first that departs only
_CONTEXT = 36  # columns of text before a token
_VERDICTS = {"passed": "green", "warned": "yellow", "failed": "red"}


def proof_text(proof: Proof) -> str:
    """Everything worth reading of ``proof`` on a terminal, the verdict last, where people look."""
    weights = count_text(proof.parameters)
    title = f"{proof.artifact}: {proof.arch}, {proof.type}, {weights} weights\nagainst {proof.checkpoint}"
    sections = [
        printable(title, keep="\n"),
        table(
            (name, part.verdict, said)
            for (name, part), said in zip(proof.parts.items(), _lines(proof), strict=True)
        ),
        _found(proof),
        figures_text(proof.logits),
        _worst(proof.logits.worst),
        _diagnosis(proof.logits.diagnosis),
        "\n".join(printable(f"note: {note}") for note in proof.notes),
        _verdict(proof),
    ]
    return _coloured("\n\n".join(section for section in sections if section))


def proof_line(proof: Proof) -> str:
    """One line for a file: verdict and, as far as they go, the figures."""
    told = _logits_line(proof.logits) if proof.logits.figures is not None else ""
    cause = "" if proof.verdict == "passed" or proof.cause is None else proof.cause
    text = "; ".join(part for part in (cause, told) if part)
    return _coloured(f"{printable(proof.type.upper())}: {proof.verdict}: {printable(text)}")


def parity_text(parity: Parity) -> str:
    """How many texts give equal token ids."""
    equal = f"{parity.exact:,} of {parity.texts:,} texts give the checkpoint's own ids"
    remark = {
        "exact": "",
        "leading-space": ", all of them once they begin with a space (see the note)",
        "extra-spaces": ", all of them but for surplus spaces (see the note)",
    }.get(parity.verdict, ": THE TOKENS DIFFER")
    return f"{equal}{remark}"


# --- the four parts, a line each ---


def _lines(proof: Proof) -> list[str]:
    return [
        _tokens_line(proof.tokens),
        _metadata_line(proof.metadata),
        _weights_line(proof.weights),
        _logits_line(proof.logits),
    ]


def _tokens_line(part: TokensPart) -> str:
    said = [] if part.parity is None else [parity_text(part.parity)]
    if part.entries:
        said.append(f"{plural(part.entries, 'entry')} compared one by one".replace("entrys", "entries"))
    return "; ".join(said) or _fallback(part.findings)


def _metadata_line(part: MetadataPart) -> str:
    if not part.keys:
        return _fallback(part.findings)
    different = sum(finding.grave for finding in part.findings)
    rest = f"{different:,} differ from" if different else "as"
    return f"{plural(part.keys, 'key')} that llama.cpp reads, {rest} the checkpoint says"


def _weights_line(part: WeightsPart) -> str:
    if not part.tensors:
        return _fallback(part.findings)
    states: Counter[str] = Counter(tensor.state for tensor in part.tensors)
    words = {
        "identical": "byte for byte as the checkpoint gives them",
        "within": "within the error of their format",
        "differs": "different",
    }
    told = ", ".join(f"{states[state]:,} {word}" for state, word in words.items() if states[state])
    return f"{plural(len(part.tensors), 'tensor')}: {told}"


def _logits_line(part: LogitsPart) -> str:
    figures, gate = part.figures, part.gate
    if figures is None:
        return _fallback(part.findings)
    measured = f"mean KL {number(figures.kl_mean)}"
    if gate is not None and gate.measure == "nmse":
        measured = f"NMSE {number(figures.nmse)}"
    limit = "" if gate is None else f" (gate {number(gate.warns)})"
    return (
        f"{measured}{limit}, same top token {percent(figures.same_top1)}, perplexity "
        f"{perplexity(figures.perplexity_file)} against {perplexity(figures.perplexity_reference)}"
    )


def _fallback(findings: Sequence[Finding]) -> str:
    return findings[0].message if findings else ""


# --- findings ---


def _found(proof: Proof) -> str:
    """The gravest findings, at most a dozen."""
    ranked = [
        (not finding.grave, at, name, finding)
        for name, part in proof.parts.items()
        for at, finding in enumerate(sorted(part.findings, key=lambda finding: not finding.grave))
    ]
    if not ranked:
        return ""
    ranked.sort(key=lambda item: item[:2])  # the first of every part before the second of any
    shown = sorted(ranked[:_FINDINGS], key=lambda item: (item[0], list(proof.parts).index(item[2])))
    lines = ["What was found"]
    for mild, _, name, finding in shown:
        lines.append(printable(f"  {name}{' (warning)' if mild else ''}: {finding_text(finding)}"))
    if len(ranked) > _FINDINGS:
        lines.append(f"  … and {len(ranked) - _FINDINGS:,} more; --json and --report have all")
    return "\n".join(lines)


def finding_text(finding: Finding) -> str:
    """One sentence with the place and both values, each said once."""
    place = "" if not finding.where or finding.where in finding.message else f"{finding.where}: "
    values = [
        f"{word} {value}"
        for word, value in (("expected", finding.expected), ("found", finding.found))
        if value is not None and value not in finding.message
    ]
    return f"{place}{finding.message}" + (f" ({', '.join(values)})" if values else "")


# --- where it is worst, and why ---


def _worst(worst: Sequence[WorstToken]) -> str:
    """The positions with the largest divergence, in their context."""
    if not worst:
        return ""
    lines = ["Where the two disagree most"]
    for token in worst[:_WORST]:
        before = _end(printable(token.before), _CONTEXT)
        right = f"{_quoted(token.right)} follows"
        lines.append(
            f"  {before} … {right} ({percent(token.right.probability)} for the checkpoint, "
            f"{percent(token.right_file)} for the file; KL {number(token.kl)})"
        )
        lines.append(f"    checkpoint: {_guesses(token.reference)}")
        lines.append(f"    file:       {_guesses(token.file)}")
    return "\n".join(lines)


def _guesses(guesses: Sequence[Guess]) -> str:
    return ", ".join(f"{_quoted(guess)} {percent(guess.probability)}" for guess in guesses[:3])


def _quoted(guess: Guess) -> str:
    """The text of a token; a piece of a syllable, which is no text, by its number."""
    if not guess.text or "\ufffd" in guess.text:
        return f"token {guess.token}"
    return f'"{printable(guess.text)}"'


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
    rows = [(f"  layer {layer.layer}", number(layer.weights), number(layer.runtime)) for layer in layers]
    rows.append(("  logits", number(diagnosis.logits_weights), number(diagnosis.logits_runtime)))
    lines = [
        "Where it goes wrong",
        table(rows, header=("  NMSE after", "by the weights", "by the runtime"), right=(1, 2)),
    ]
    if len(layers) < len(diagnosis.layers):
        lines.append(f"  (of {len(diagnosis.layers)} layers; --json has all)")
    return "\n".join([*lines, printable(f"  {diagnosis.conclusion}")])


def _nearby(layers: Sequence[LayerError], first: int | None) -> list[LayerError]:
    """All layers where they are few, else those around the first that departs, and the last."""
    if len(layers) <= _LAYERS:
        return list(layers)
    middle = next((at for at, layer in enumerate(layers) if layer.layer == first), 0)
    start = min(max(middle - 3, 0), len(layers) - _LAYERS)
    return [*layers[start : start + _LAYERS - 1], layers[-1]]


# --- the verdict ---


def _verdict(proof: Proof) -> str:
    took = f" ({seconds_text(proof.seconds)})" if proof.seconds else ""
    cause = printable(proof.cause or "")
    told = cause or "the file says what the checkpoint says"
    return f"verdict: {proof.verdict}{took}: {told}"


def _coloured(text: str) -> str:
    """The verdicts in colour; click takes the colours out where there is no terminal."""
    if os.environ.get("NO_COLOR"):
        return text

    def styled(match: re.Match[str]) -> str:
        return f"{match[1]}{click.style(match[2], fg=_VERDICTS[match[2]], bold=True)}"

    return re.sub(r"^(\S+ +)(passed|warned|failed)\b", styled, text, flags=re.MULTILINE)
