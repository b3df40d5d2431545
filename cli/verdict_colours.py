"""Verdicts in colour, for those who have a terminal and did not ask for none (NO_COLOR)."""

from __future__ import annotations

import os
import re

import click

from ..report.names import VERDICTS, verdict_word

_COLOURS = {
    "passed": "green",
    "warned": "yellow",
    "not decided": "yellow",
    "not compared": "yellow",
    "failed": "red",
}


def coloured(text: str) -> str:
    """The verdicts in colour; click takes the colours out where there is no terminal."""
    if os.environ.get("NO_COLOR"):
        return text

    colours = {verdict_word(verdict): _COLOURS[verdict] for verdict in VERDICTS if verdict in _COLOURS}

    def styled(match: re.Match[str]) -> str:
        return f"{match[1]}{click.style(match[2], fg=colours[match[2]], bold=True)}"

    return re.sub(rf"^(\S+ +)({'|'.join(colours)})\b", styled, text, flags=re.MULTILINE)
