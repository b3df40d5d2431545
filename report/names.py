"""What verdicts, parts, states and grades are called, in the language spoken."""

from __future__ import annotations

from ..core.language import _, ngettext, phrase, translated
from ..verify.proof import Part, Verdict

VERDICTS: tuple[Verdict, ...] = ("passed", "warned", "failed", "not decided", "not compared", "not run")
_VERDICTS = {
    "passed": phrase("passed"),
    "warned": phrase("warned"),
    "failed": phrase("failed"),
    "not decided": phrase("not decided"),
    "not compared": phrase("not compared"),
    "not run": phrase("not run"),
}
_COUNTED = {
    "passed": phrase("{count} passed"),
    "warned": phrase("{count} warned"),
    "failed": phrase("{count} failed"),
    "not decided": phrase("{count} not decided"),
    "not compared": phrase("{count} not compared"),
    "not run": phrase("{count} not run"),
}
_ROWS = {
    "tokens": phrase("tokens"),
    "metadata": phrase("metadata"),
    "weights": phrase("weights"),
    "runtime": phrase("runtime"),
    "logits": phrase("logits"),
    "embeddings": phrase("embeddings"),
}
_PARTS = {
    "tokens": (phrase("Tokens"), phrase("Is text tokenized the same way?")),
    "metadata": (phrase("Metadata"), phrase("Are the settings the same as in the original?")),
    "weights": (phrase("Weights"), phrase("Are the weights those of the original?")),
    "runtime": (phrase("Computation"), phrase("Does the runtime compute what the file contains?")),
    "logits": (phrase("Predictions"), phrase("Does it predict what the original predicts?")),
    "embeddings": (phrase("Embeddings"), phrase("Does it embed texts as the original does?")),
}
_RIGHT = {
    "passed": phrase("yes"),
    "warned": phrase("yes, with warnings"),
    "not compared": phrase("not compared"),
    "not run": phrase("not checked"),
    "not decided": phrase("not decided"),
    "failed": phrase("no"),
}
_IS_RIGHT = {
    "passed": phrase("right"),
    "warned": phrase("right, with warnings"),
    "not compared": phrase("not compared"),
    "not run": phrase("not checked"),
    "not decided": phrase("not decided"),
    "failed": phrase("wrong"),
}
_LOSES = {
    "nothing": phrase("loses next to nothing"),
    "little": phrase("loses little"),
    "some": phrase("loses some accuracy"),
    "much": phrase("loses much"),
}
_LOSSES = {
    "nothing": phrase("next to nothing"),
    "little": phrase("little"),
    "some": phrase("some accuracy"),
    "much": phrase("much"),
}
_STATES = {
    "identical": phrase("identical"),
    "within": phrase("within"),
    "not compared": phrase("not compared"),
    "differs": phrase("differs"),
}


PARTS = tuple(_ROWS)


def verdict_word(verdict: Verdict) -> str:
    """``passed``, as people read it; programs read the verdict itself."""
    return translated(_VERDICTS[verdict])


def recorded_verdict(verdict: str) -> str:
    """A verdict as a file has it, which may be any text, as people read it."""
    return next((verdict_word(known) for known in VERDICTS if known == verdict), verdict)


def part_name(name: str) -> str:
    """A part in a terminal's columns: ``tokens``."""
    return translated(_ROWS[name])


def part_title(name: str) -> tuple[str, str]:
    """The part's name and the question it answers."""
    title, question = _PARTS[name]
    return translated(title), translated(question)


def right_words(right: Verdict) -> str:
    """Whether the file is right, as an answer: ``yes``."""
    return translated(_RIGHT[right])


def is_right(right: Verdict) -> str:
    """Whether the file is right, said of it: ``wrong``."""
    return translated(_IS_RIGHT[right])


def loses(grade: str) -> str:
    """``loses much``."""
    return translated(_LOSES[grade])


def loss_answer(grade: str) -> str:
    """What it loses, as an answer: ``much``."""
    return translated(_LOSSES[grade])


def state_word(state: str) -> str:
    """The state of a tensor: ``differs``."""
    return translated(_STATES[state])


def counted_files(counts: dict[Verdict, int]) -> str:
    """``Of 3 files: 2 passed, 1 failed.``"""
    words = ", ".join(
        translated(_COUNTED[verdict].of(count=counts[verdict])) for verdict in VERDICTS if counts.get(verdict)
    )
    return ngettext(
        "Of {count} file: {words}.", "Of {count} files: {words}.", sum(counts.values()), words=words
    )


def unchecked(part: Part) -> str | None:
    """What is said of a part that looked at nothing; None for all others."""
    if part.verdict == "not run" and not part.findings:
        return _("Not checked in this run.")
    if part.verdict == "not compared":
        return _("Not compared: {reason}.", reason=translated(part.findings[0].message))
    if part.verdict == "not decided":
        return _("Not decided: the check could not be finished on this machine.")
    return None
