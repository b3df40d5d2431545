"""What a proof means, in sentences for people who decide and in lines for those who build."""

from __future__ import annotations

from ..core.language import Phrase, _, ngettext, phrase, translated
from ..verify.cosine_gates import cosine_text
from ..verify.loss import FACTOR
from ..verify.measurements import Shares
from ..verify.proof import (
    EmbeddingsPart,
    LogitsPart,
    MetadataPart,
    Part,
    Proof,
    RuntimePart,
    TokensPart,
    Verdict,
    WeightsPart,
)
from .figure_words import gate_name, gate_value, gelu_words
from .names import loses, loss_answer, part_name, part_title, unchecked
from .similarity_words import similarity_line
from .text import count, number, plain, sentence

_USE = {
    "warned": phrase(
        "It runs, but someone who knows the model should read the findings before it is distributed."
    ),
    "failed": phrase("Do not use or distribute this file. Convert it again, or see below what to fix."),
    "not compared": phrase("Nothing can be said about this file yet."),
    "not run": phrase("Nothing can be said about this file yet."),
    "not decided": phrase(
        "No fault was found in this file, but the check could not be finished: run it again."
    ),
}
_LOSES_TOO_MUCH = phrase(
    "The file is right, but loses more than the limit given for this run allows: take a finer type, "
    "or another limit."
)
_RIGHTNESS: dict[Verdict, Phrase] = {
    "failed": phrase("Wrong: {parts}."),
    "not decided": phrase("Not decided: {parts}."),
    "warned": phrase("With warnings: {parts}."),
    "passed": phrase("As it should be: {parts}."),
    "not compared": phrase("Not compared: {parts}."),
    "not run": phrase("Not checked: {parts}."),
}
_STATES = {
    "identical": phrase("{count} exactly as encoding the original gives"),
    "within": phrase("{count} within the format's error"),
    "not compared": phrase("{count} within the format's error, not compared byte by byte"),
    "differs": phrase("{count} wrong"),
}
_WHOLE = ("f32", "f64", "bf16", "f16")  # types whose loss nobody notices


def headline(proof: Proof) -> str:
    """Why, in one plain sentence."""
    if proof.verdict == "not run":
        return _("Nothing has been checked.")
    if proof.verdict == "passed":
        return _matches(proof)
    found = proof.telling
    if found is None:
        names = ", ".join(
            part_title(name)[0] for name, part in proof.parts.items() if part.verdict == proof.verdict
        )
        return _("The verdict on {parts}.", parts=names)
    name, finding = found
    text = sentence(_("{part}: {why}", part=part_title(name)[0], why=finding.message))
    others = sum(len(each.findings) for each in proof.parts.values()) - 1
    if not others:
        return text
    return f"{text} " + ngettext("There is {count} more finding.", "There are {count} more findings.", others)


def _matches(proof: Proof) -> str:
    if proof.measured.verdict != "passed":
        text = _("Everything checked matches the original checkpoint.")
    elif proof.type in _WHOLE:
        text = _("The file answers like the original checkpoint.")
    else:
        text = _(
            "The file answers like the original checkpoint, as closely as is usual for {type}.",
            type=_type(proof),
        )
    unchecked_too = ("not run", "not compared")
    skipped = [part_title(name)[0] for name, part in proof.parts.items() if part.verdict in unchecked_too]
    return f"{text} " + _("Not checked: {parts}.", parts=", ".join(skipped)) if skipped else text


def use(proof: Proof) -> str:
    """What follows for who wants to use the file."""
    if proof.verdict == "failed" and proof.right in ("passed", "warned"):
        return translated(_LOSES_TOO_MUCH)
    if proof.verdict != "passed":
        return translated(_USE[proof.verdict])
    if proof.type in _WHOLE:
        return _("Fit for use in place of the checkpoint.")
    return _(
        "Fit for use in place of the checkpoint, with the loss that comes with {type}.", type=_type(proof)
    )


def _type(proof: Proof) -> str:
    return plain(proof.type.upper(), 20)


def cause(proof: Proof) -> str:
    """``weights: tensor … is not in the file``: the finding that tells most; nothing where there is none."""
    if proof.telling is None:
        return ""
    name, finding = proof.telling
    return _("{part}: {why}", part=part_name(name), why=finding.message)


def rightness(proof: Proof) -> str:
    """What the answer whether the file is right consists of, part by part."""
    parts: dict[Verdict, list[str]] = {}
    for name, part in proof.parts.items():
        if part is not proof.measured:
            parts.setdefault(part.verdict, []).append(part_title(name)[0])
    if proof.right == "failed" and "failed" not in parts:
        parts["failed"] = [part_title(list(proof.parts)[-1])[0]]
    return " ".join(
        translated(say.of(parts=", ".join(parts[verdict])))
        for verdict, say in _RIGHTNESS.items()
        if verdict in parts
    )


def measured_loss(proof: Proof) -> str:
    """The loss in figures, the text it was measured on, and which type would lose less."""
    if proof.embeddings is not None and proof.embeddings.figures is not None:
        least = cosine_text(proof.embeddings.figures.cosine_mean)
        return _("mean cosine {value}, on {text}", value=least, text=stands_on(proof))
    if proof.logits.figures is None:
        return ""
    text = _("mean KL {value}, on {text}", value=number(proof.logits.figures.kl_mean), text=stands_on(proof))
    return "; ".join(each for each in (text, advice(proof.logits)) if each)


def part_line(part: Part) -> str:
    """What a part looked at and what came of it, in a line."""
    nothing = unchecked(part)
    if nothing is not None:
        return nothing
    if isinstance(part, TokensPart):
        return _tokens_line(part)
    if isinstance(part, MetadataPart):
        return _metadata_line(part)
    if isinstance(part, WeightsPart):
        return _weights_line(part)
    if isinstance(part, RuntimePart):
        return _runtime_line(part)
    if isinstance(part, EmbeddingsPart):
        return similarity_line(part)
    return _logits_line(part)


def _logits_line(part: LogitsPart) -> str:
    if part.figures is None:
        return _("The runtime gave no predictions to compare.")
    if not part.figures.positions:
        return _("Predictions could not be compared at any position.")
    if part.gate is None:
        return _("mean KL {value}", value=number(part.figures.kl_mean))
    return _(
        "{figure} {value}, gate {limit}{gelu}",
        figure=gate_name(part.gate),
        value=number(gate_value(part.figures, part.gate)),
        limit=number(part.gate.warns, exact=True),
        gelu=gelu_words(part.figures),
    )


def _tokens_line(part: TokensPart) -> str:
    entries = ""
    if part.entries:
        entries = ngettext(
            "{count} vocabulary entry compared", "{count} vocabulary entries compared", part.entries
        )
    parity = part.parity
    if parity is None:
        return entries or _("No texts were compared.")
    if parity.error:
        return _("llama.cpp could not be run.")
    share = ngettext(
        "{exact} of {count} text read alike",
        "{exact} of {count} texts read alike",
        parity.texts,
        exact=count(parity.exact),
    )
    return f"{share}; {entries}" if entries else share


def _metadata_line(part: MetadataPart) -> str:
    keys = ngettext("{count} key compared", "{count} keys compared", part.keys)
    wrong = sum(finding.grave for finding in part.findings)
    if wrong:
        return _("{keys}, {count} wrong", keys=keys, count=wrong)
    if part.findings:
        remarks = ngettext("{count} remark", "{count} remarks", len(part.findings))
        return _("{keys}, {remarks}", keys=keys, remarks=remarks)
    return _("{keys}, all as they should be", keys=keys)


def _weights_line(part: WeightsPart) -> str:
    if not part.tensors:
        return _("No tensors were compared.")
    total = ngettext("{count} tensor", "{count} tensors", len(part.tensors))
    amounts = {
        state: sum(tensor.state == state for tensor in part.tensors)
        for state in ("identical", "within", "not compared", "differs")
    }
    missing = part.not_compared + len(part.untold)
    left = _("; {count} not compared", count=count(missing)) if missing else ""
    if amounts["identical"] == len(part.tensors):
        return _("{tensors}, all exactly as encoding the original gives", tensors=total) + left
    states = ", ".join(
        translated(_STATES[state].of(count=count(amount))) for state, amount in amounts.items() if amount
    )
    return _("{tensors}: {states}", tensors=total, states=states) + left


def _runtime_line(part: RuntimePart) -> str:
    if not part.worst:
        return _("The runtime could not be run.")
    largest = max(part.worst, key=lambda each: each.nmse / each.limit)
    return _(
        "{inputs} recomputed at {positions}, NMSE at most {nmse} (limit {limit})",
        inputs=ngettext("{count} matrix input", "{count} matrix inputs", part.matrices),
        positions=ngettext("{count} position", "{count} positions", part.positions),
        nmse=number(largest.nmse),
        limit=number(largest.limit, exact=True),
    )


def loss_words(part: LogitsPart | EmbeddingsPart) -> str:
    """``loses much``; nothing where no loss was measured."""
    grade = _grade(part)
    return "" if grade is None else loses(grade)


def _grade(part: LogitsPart | EmbeddingsPart) -> str | None:
    if isinstance(part, EmbeddingsPart):
        return part.grade
    return None if part.loss is None else part.loss.grade


def loss_short(part: LogitsPart | EmbeddingsPart) -> str:
    """The same as an answer: ``much``."""
    grade = _grade(part)
    return _("not measured") if grade is None else loss_answer(grade)


def shares_words(shares: Shares) -> str:
    """What the loss consists of, in a sentence."""
    steps = (shares.weights, shares.inputs - shares.weights, shares.runtime - shares.inputs)
    weights, inputs, runtime = (number(value) for value in steps)
    return _(
        "of the loss at the first {positions}, mean KL {total}, the weights make {weights}, rounding what "
        "they are multiplied by {inputs}, the runtime {runtime}",
        positions=ngettext("{count} position", "{count} positions", shares.positions),
        total=number(shares.runtime),
        weights=weights,
        inputs=inputs,
        runtime=runtime,
    )


def stands_on(proof: Proof) -> str:
    """``512 tokens of the built-in texts``: what the figures stand on."""
    figures, texts = proof.measured.figures, proof.provenance.get("texts", ())
    tokens = ngettext("{count} token", "{count} tokens", 0 if figures is None else figures.positions)
    if not any("sha256" in str(text) for text in texts):
        return _("{tokens} of the built-in texts", tokens=tokens)
    given = ngettext("{count} text given", "{count} texts given", len(texts))
    return _("{tokens} of {texts}", tokens=tokens, texts=given)


def advice(part: LogitsPart) -> str:
    """Which type would lose less, with the error of the estimate; nothing where nobody needs another."""
    if part.loss is None or part.loss.type is None or part.loss.estimate is None:
        return ""
    return _(
        "{type} would lose about {estimate} (estimated, within a factor of {factor})",
        type=plain(part.loss.type, 20),
        estimate=number(part.loss.estimate),
        factor=f"{FACTOR:g}",
    )
