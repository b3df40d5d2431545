"""Foreign text in Markdown: what comes from files neither ends a cell, a block or a span nor becomes markup.

GitHub's dialect, which the Hub's pages use too: CommonMark with tables.
"""

from __future__ import annotations

import re
from urllib.parse import quote

from .text import plain

# Markup inside a line, and what makes a link of a bare address.
_MARKUP = re.compile(r"[\\`*_{}\[\]<>()#!|&~$@]|:(?=//)|(?<=www)\.")
# What the beginning of a line makes a list, a rule or the underline of a heading.
_BEGIN = re.compile(r"[-+=](?=\s|$|[-=])|\d+[.)](?=\s|$)")


class Markdown(str):
    """Text that is Markdown already."""


def escaped(text: object) -> Markdown:
    """Text as it is to be read, on one line; Markdown stays as it is."""
    if isinstance(text, Markdown):
        return text
    shown = _MARKUP.sub(r"\\\g<0>", plain(" ".join(str(text).split()), 400))
    begin = _BEGIN.match(shown)
    at = begin.end() - 1 if begin else 0
    return Markdown(f"{shown[:at]}\\{shown[at:]}" if begin else shown)


def code(text: str, *, cell: bool = False) -> Markdown:
    """A span of code; in the ``cell`` of a table, where a bar would end the cell even here."""
    shown = plain(" ".join(text.split()), 400)
    fence = "`" * (_longest_run(shown) + 1)
    pad = " " if shown.startswith("`") or shown.endswith("`") else ""
    return Markdown(f"{fence}{pad}{shown.replace('|', chr(92) + '|') if cell else shown}{pad}{fence}")


def block(text: str, language: str = "") -> Markdown:
    """A block of code in a fence longer than any in it."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return Markdown(f"{fence}{language}\n{text.strip(chr(10))}\n{fence}")


def link(text: object, url: str) -> Markdown:
    """A link; the address is percent-encoded where it has to be."""
    return Markdown(f"[{escaped(text)}]({quote(url, safe=':/?#@!$&*+,;=%~-._')})")


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
