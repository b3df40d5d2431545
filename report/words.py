"""What a proof means, in sentences for people who decide and in lines for those who build."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..verify.loss import FACTOR
from ..verify.measurements import Figures, Shares
from ..verify.proof import (
    Gate,
    LogitsPart,
    MetadataPart,
    Part,
    Proof,
    RuntimePart,
    TokensPart,
    Verdict,
    WeightsPart,
)
from .text import count, number, percent, plain, small_percent, with_error

_USE: dict[Verdict, str] = {
    "passed": "Fit for use in place of the checkpoint{loss}.",
    "warned": "It runs, but someone who knows the model should read the findings before it is distributed.",
    "failed": "Do not use or distribute this file. Convert it again, or see below what to fix.",
    "not run": "Nothing can be said about this file yet.",
    "not decided": "No fault was found in this file, but the check could not be finished: run it again.",
}
_WHOLE = ("f32", "f64", "bf16", "f16")  # types whose loss nobody notices
_PARTS = {
    "tokens": ("Tokens", "Is text tokenized the same way?"),
    "metadata": ("Metadata", "Are the settings the same as in the original?"),
    "weights": ("Weights", "Are the weights those of the original?"),
    "runtime": ("Computation", "Does llama.cpp compute what the file contains?"),
    "logits": ("Predictions", "Does it predict what the original predicts?"),
}
_STATES = {
    "identical": "exactly as encoding the original gives",
    "within": "within the format's error",
    "not compared": "within the format's error, not compared byte by byte",
    "differs": "wrong",
}
_LOSSES = {"nothing": "next to nothing", "little": "little", "some": "some accuracy", "much": "much"}
# Figure (as in measurements.Figures), its title, how it is shown, what it says.
_ROWS: tuple[tuple[str, str, Callable[[Figures], str], str], ...] = (
    ("kl_mean", "KL divergence, mean", lambda f: with_error(f.kl_mean, f.kl_mean_error),
     "how far apart the predictions are, in nats; 0 is equal"),
    ("kl_median", "KL divergence, median", lambda f: number(f.kl_median), "at a typical position"),
    ("kl_99", "KL divergence, 99\u00a0%", lambda f: number(f.kl_99), "one position in a hundred is above"),
    ("kl_999", "KL divergence, 99.9\u00a0%", lambda f: number(f.kl_999), "one in a thousand"),
    ("kl_max", "KL divergence, largest", lambda f: number(f.kl_max), "the worst position of all"),
    ("same_top1", "Same first choice", lambda f: f"{percent(f.same_top1)} ± {percent(f.same_top1_error)}",
     "both predict the same next token"),
    ("other_top1", "Another first choice",
     lambda f: f"{count(f.other_top1)}, lead ≤ {number(f.other_top1_lead)}" if f.other_top1 else "",
     "positions, and by how many logits the checkpoint's choice led there at most; almost none in a tie"),
    ("top5_overlap", "Overlap of the five most likely", lambda f: percent(f.top5_overlap),
     "share of the five that both have"),
    ("dp_rms", "Δp, root mean square", lambda f: small_percent(f.dp_rms),
     "change in the right token's probability"),
    ("dp_mean", "Δp, mean", lambda f: small_percent(f.dp_mean, sign=True), "below zero: less sure"),
    ("perplexity", "Perplexity, checkpoint → file",
     lambda f: f"{number(f.perplexity_reference, 5)} → {number(f.perplexity_file, 5)}",
     "how surprised each is by the text"),
    ("perplexity_increase", "Perplexity, increase",
     lambda f: number(f.perplexity_file - f.perplexity_reference), "file minus checkpoint; varies by text"),
    ("log_ratio", "Perplexity, ln(file / checkpoint)", lambda f: with_error(f.log_ratio, f.log_ratio_error),
     "0 is equal"),
    ("nll", "NLL per token, checkpoint → file",
     lambda f: f"{number(f.nll_reference, 7)} → {number(f.nll_file, 7)}", "the same in nats"),
    ("nmse", "Logits, NMSE", lambda f: number(f.nmse), "squared difference over the checkpoint's variance"),
    ("nmse_same_gelu", "Logits, NMSE, same GELU",
     lambda f: "" if f.nmse_same_gelu is None else number(f.nmse_same_gelu),
     "the same when llama.cpp's 16-bit GELU table is computed in fp32: what is left is not due to the table"),
    ("logit_rms", "Logits, RMS difference", lambda f: number(f.logit_rms), "in logits"),
    ("logit_max", "Logits, largest difference", lambda f: number(f.logit_max),
     "in logits, over all tokens and positions"),
)  # fmt: skip


@dataclass(frozen=True)
class FigureRow:
    """A line of the table of figures; ``gate`` is empty where the gate does not look at it."""

    key: str
    name: str
    value: str
    gate: str
    meaning: str


def part_title(name: str) -> tuple[str, str]:
    """The part's name and the question it answers."""
    return _PARTS[name]


def headline(proof: Proof) -> str:
    """Why, in one plain sentence."""
    skipped = [_PARTS[name][0].lower() for name, part in proof.parts.items() if part.verdict == "not run"]
    if proof.verdict == "not run":
        return "Nothing has been checked."
    if proof.verdict == "passed":
        text = "Everything checked matches the original checkpoint"
        if proof.logits.verdict == "passed":
            text = "The file answers like the original checkpoint"
            text += "" if proof.type in _WHOLE else f", as closely as is usual for {_type(proof)}"
        return f"{text}." if not skipped else f"{text}; not checked: {', '.join(skipped)}."
    if proof.cause is None:
        return f"The verdict on {', '.join(n for n, p in proof.parts.items() if p.verdict == proof.verdict)}."
    part, _, why = proof.cause.partition(": ")
    text = sentence(f"{_PARTS[part][0]}: {why}")
    others = sum(len(each.findings) for each in proof.parts.values()) - 1
    more = f" There {'is' if others == 1 else 'are'} {count(others, 'more finding')}."
    return text + (more if others else "")


def sentence(text: str) -> str:
    """``text`` with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def use(proof: Proof) -> str:
    """What follows for who wants to use the file."""
    loss = "" if proof.type in _WHOLE else f", with the loss that comes with {_type(proof)}"
    return _USE[proof.verdict].format(loss=loss)


def _type(proof: Proof) -> str:
    return plain(proof.type.upper(), 20)


def in_plain_figures(figures: Figures) -> str:
    """How close the file is, in a plain sentence."""
    if not figures.positions:
        return "Its predictions could not be compared anywhere in the text."
    text = f"It predicts the same next token as the original at {percent(figures.same_top1, 1)} of "
    text += f"{count(figures.positions, 'place')} in the text"
    change = math.expm1(figures.log_ratio) if figures.log_ratio < 700 else math.inf
    if not math.isfinite(change):
        return f"{text}."
    text += "; its perplexity (how surprised it is by the text) is"
    if abs(change) < 5e-4:
        return f"{text} the original's to within {percent(5e-4)}."
    if change > 2:
        return f"{text} {number(1 + change)} times the original's."
    return f"{text} {percent(abs(change), 1)} {'higher' if change > 0 else 'lower'}."


def part_line(part: Part) -> str:
    """What a part looked at and what came of it, in a line."""
    if part.verdict == "not run" and not part.findings:
        return "Not checked in this run."
    if part.verdict == "not decided":
        return "Not decided: the check could not be finished on this machine."
    if isinstance(part, TokensPart):
        return _tokens_line(part)
    if isinstance(part, MetadataPart):
        return _metadata_line(part)
    if isinstance(part, WeightsPart):
        return _weights_line(part)
    if isinstance(part, RuntimePart):
        return _runtime_line(part)
    if part.figures is None:
        return "The runtime gave no predictions to compare."
    if not part.figures.positions:
        return "Predictions could not be compared at any position."
    if part.gate is None:
        return f"mean KL {number(part.figures.kl_mean)}"
    measured = f"{gate_name(part.gate)} {number(gate_value(part.figures, part.gate))}"
    return f"{measured}, gate {number(part.gate.warns, exact=True)}{gelu_words(part.figures)}"


def gate_name(gate: Gate) -> str:
    """What people call the figure the gate judges."""
    return "NMSE" if gate.measure == "nmse" else "mean KL"


def gelu_words(figures: Figures) -> str:
    """What is left of the NMSE without llama.cpp's table of GELU; nothing where that was not measured."""
    left = figures.nmse_same_gelu
    return "" if left is None else f"; {number(left)} with llama.cpp's GELU in fp32"


def _tokens_line(part: TokensPart) -> str:
    entries = f"{count(part.entries, 'vocabulary entry')} compared" if part.entries else ""
    parity = part.parity
    if parity is None:
        return entries or "No texts were compared."
    if parity.error:
        return "llama.cpp could not be run."
    share = f"{count(parity.exact)} of {count(parity.texts, 'text')} read alike"
    return f"{share}; {entries}" if entries else share


def _metadata_line(part: MetadataPart) -> str:
    wrong = sum(finding.grave for finding in part.findings)
    remarks = count(len(part.findings), "remark") if part.findings else "all as they should be"
    return f"{count(part.keys, 'key')} compared, {f'{wrong} wrong' if wrong else remarks}"


def _weights_line(part: WeightsPart) -> str:
    if not part.tensors:
        return "No tensors were compared."
    total = count(len(part.tensors), "tensor")
    amounts = {state: sum(tensor.state == state for tensor in part.tensors) for state in _STATES}
    missing = part.not_compared + len(part.untold)
    left = f"; {count(missing)} not compared" if missing else ""
    if amounts["identical"] == len(part.tensors):
        return f"{total}, all exactly as encoding the original gives{left}"
    states = [f"{count(amount)} {_STATES[state]}" for state, amount in amounts.items() if amount]
    return f"{total}: {', '.join(states)}{left}"


def _runtime_line(part: RuntimePart) -> str:
    if not part.worst:
        return "llama.cpp could not be run."
    largest = max(part.worst, key=lambda each: each.nmse / each.limit)
    found = f"NMSE at most {number(largest.nmse)} (limit {number(largest.limit, exact=True)})"
    inputs = count(part.matrices, "matrix input")
    return f"{inputs} recomputed at {count(part.positions, 'position')}, {found}"


def loss_words(part: LogitsPart) -> str:
    """``loses much``; nothing where no loss was measured."""
    if part.loss is None:
        return ""
    return f"loses {_LOSSES[part.loss.grade]}"


def shares_words(shares: Shares) -> str:
    """What the loss consists of, in a sentence."""
    steps = (shares.weights, shares.inputs - shares.weights, shares.runtime - shares.inputs)
    weights, inputs, runtime = (number(value) for value in steps)
    return (
        f"of the loss at the first {count(shares.positions, 'position')}, mean KL {number(shares.runtime)}, "
        f"the weights make {weights}, rounding what they are multiplied by {inputs}, the runtime {runtime}"
    )


_RIGHT = {
    "passed": "yes",
    "warned": "yes, with warnings",
    "not run": "not checked",
    "not decided": "not decided",
    "failed": "no",
}


def right_words(proof: Proof) -> str:
    """Whether the file is right, in a word or three."""
    return _RIGHT[proof.right]


def stands_on(proof: Proof) -> str:
    """``512 tokens of the built-in texts``: what the figures of the logits stand on."""
    figures, texts = proof.logits.figures, proof.provenance.get("texts", ())
    tokens = count(0 if figures is None else figures.positions, "token")
    own = any("sha256" in str(text) for text in texts)
    return f"{tokens} of {count(len(texts), 'text') + ' given' if own else 'the built-in texts'}"


def advice(part: LogitsPart) -> str:
    """Which type would lose less, with the error of the estimate; nothing where nobody needs another."""
    if part.loss is None or part.loss.type is None or part.loss.estimate is None:
        return ""
    name = plain(part.loss.type, 20)
    return f"{name} would lose about {number(part.loss.estimate)} (estimated, within a factor of {FACTOR:g})"


def figure_rows(figures: Figures, gate: Gate | None) -> list[FigureRow]:
    """The figures there are as rows, the gate beside the one it judges; dashes where nothing was measured."""
    measure, limits = (None, "") if gate is None else (gate.measure, gate_words(gate))
    return [
        FigureRow(
            key, name, shown(figures) if figures.positions else "–", limits if key == measure else "", meaning
        )
        for key, name, shown, meaning in _ROWS
        if shown(figures)
    ]


def gate_words(gate: Gate) -> str:
    """``warns above 0.15, fails above 0.45``."""
    warns = f"warns above {number(gate.warns, exact=True)}"
    if gate.fails is None:
        return warns
    fails = f"fails above {number(gate.fails, exact=True)}"
    return f"{warns}, {fails}" if gate.fails > gate.warns else fails


def gate_value(figures: Figures, gate: Gate) -> float:
    """The figure the gate judges."""
    return figures.nmse if gate.measure == "nmse" else figures.kl_mean


def percentile_rows(figures: Figures) -> list[tuple[str, str]]:
    """Percentiles of Δp with their values."""
    return [
        (f"{number(share, exact=True)}\u00a0%", small_percent(value, sign=True))
        for share, value in figures.dp_percentiles
    ]
