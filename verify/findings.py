"""Verdicts, and the single findings they follow from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..core.errors import ChildDied

Verdict = Literal["passed", "warned", "failed", "not run", "not compared", "not decided"]
"""``not decided``: the process that was to measure it died, which says nothing about the file.
``not compared``: that cannot be done with this kind of file, for the reason that a finding gives.
"""
_ORDER: dict[str, int] = {
    "not run": 0,
    "not compared": 0,
    "passed": 1,
    "warned": 2,
    "not decided": 3,
    "failed": 4,
}
LIMIT = "limit"
"""Where a finding lies that is about a limit given for the run."""


def worst(verdicts: list[Verdict]) -> Verdict:
    """The gravest of several; ``not run`` counts least."""
    return max(verdicts, key=lambda verdict: _ORDER[verdict], default="not run")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing where ``grave`` is false.

    ``where`` is a key, token, tensor or position as the file names it; ``message`` one sentence a person
    understands without the code; ``expected`` and ``found`` the two values, where there are such.
    """

    where: str
    message: str
    expected: str | None = None
    found: str | None = None
    grave: bool = True


def verdict_of(findings: tuple[Finding, ...]) -> Verdict:
    """Failed by a grave finding, warned by any, passed by none."""
    if any(finding.grave for finding in findings):
        return "failed"
    return "warned" if findings else "passed"


def undecided(death: ChildDied, runtime: str) -> Finding:
    """The one thing to say where the process that runs ``runtime`` died; it is no fault of the file's."""
    return Finding(runtime, f"{death.message}; {death.hint}" if death.hint else death.message, grave=False)
