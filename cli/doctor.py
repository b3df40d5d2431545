"""``kconv doctor``: whether kconv works on this machine, and how to fix it if not."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from ..core.language import _, phrase
from ..core.recognition import said
from .console import emit_json, printable, say
from .errors import ENVIRONMENT
from .layout import columns, width, wrapped
from .options import json_option, verbose_option
from .versions import versions

if TYPE_CHECKING:
    from ..runtimes.finding import Finding

EXAMPLES = """\b
Examples:
  kconv doctor
  kconv doctor --json

Exit codes: 0 all works, 4 something is broken; the line "to fix it" says how.
"""
_NAMES = 17  # columns
_SHORT = (
    phrase("processor"), phrase("compiler"), phrase("kernels"), phrase("memory"), phrase("limits"),
    phrase("disk"), phrase("works"),
)  # fmt: skip
"""Words of findings that are too short to be known for sentences (core/recognition.py)."""
_MORE = ("numpy", "torch", "transformers", "sentencepiece", "safetensors", "onnx", "onnxruntime")


@click.command("doctor", short_help="Check whether kconv works on this machine.", epilog=EXAMPLES)
@json_option
@verbose_option
def command(as_json: bool, verbose: bool) -> None:
    """Check processor, compiler, packages, memory and disk, and try llama.cpp, onnxruntime and the kernels.

    Each library is tried in a process of its own, so a crash is reported here, followed by how to fix it.
    The only thing written is a file in the user's cache folder that records whether llama.cpp works.
    """
    from .progress import shown_progress

    findings = []
    with shown_progress():
        from ..runtimes.examination import examine

        for finding in examine(versions(_MORE)):
            findings.append(finding)
            if not as_json:
                _show(finding)
    broken = [finding.name for finding in findings if finding.level == "broken"]
    if as_json:
        emit_json({"findings": [asdict(finding) for finding in findings], "broken": broken})
    elif broken:
        say(f"\nbroken: {', '.join(broken)}")
    else:
        say("\nkconv works here")
    sys.stdout.flush()
    if broken:
        raise click.exceptions.Exit(ENVIRONMENT)


def _show(finding: Finding) -> None:
    mark = "" if finding.level == "ok" else f"{finding.level}: "
    name = said(finding.name)
    _say(f"{name}{' ' * (_NAMES - width(name))}{said(mark)}{said(finding.text)}", _NAMES)
    if finding.mend:
        _say(" " * _NAMES + _("to fix it: {mend}", mend=finding.mend), 0)


def _say(text: str, indent: int) -> None:
    """A line whose rest stands in the column of the values."""
    click.echo(wrapped(printable(text), columns(sys.stdout), indent))
