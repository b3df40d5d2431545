"""``--help`` in the language kconv speaks: click's pages, with what they say looked up in the catalogue.

The commands keep their help in English beside their options. A paragraph, an option's description and each
line of a list of examples that is not indented is one message; names of commands and options, what stands for
their values and the examples are the same in every language.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import click

from ..core.language import phrase, spoken, translated
from ..core.recognition import one_sentence, said
from .console import width

_OWN = (
    phrase("Usage:"),
    phrase("Options"),
    phrase("Commands"),
    phrase("Positional arguments"),
    phrase("Show this message and exit."),
    phrase("default: {default}"),
    phrase("env var: {var}"),
    phrase("required"),
)
"""Words of click's pages."""

_ERRORS = (
    phrase("Got unexpected extra argument ({args})"),
    phrase("Got unexpected extra arguments ({args})"),
    phrase("Missing argument {param_hint}."),
    phrase("Missing option {param_hint}."),
    phrase("Missing argument {param_hint}. Choose from:\n\t{choices}"),
    phrase("Missing option {param_hint}. Choose from:\n\t{choices}"),
    phrase("Invalid value: {message}"),
    phrase("Invalid value for {param_hint}: {message}"),
    phrase("No such option {name}."),
    phrase("No such option: {name}"),
    phrase("{value} is not a valid {number_type}."),
    phrase("{value} is not in the range {range}."),
    phrase("{value} is not {choice}."),
    phrase("{value} is not one of {choices}."),
    phrase("Option {name} does not take a value."),
    phrase("Option {name} requires an argument."),
    phrase("Option {name} requires {nargs} arguments."),
    phrase("see `{command} --help`"),
    phrase("Aborted!"),
)
"""What click says of a command line it does not understand."""


class SpokenHelp(click.HelpFormatter):
    """Click's formatter, which says everything in the language spoken now; as it is in English."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """As click does, with "Usage:" in that language."""
        if spoken() != "en":
            prefix = f"{translated(_OWN[0])} "
        super().write_usage(prog, args, prefix)

    def write_heading(self, heading: str) -> None:
        """As click does."""
        super().write_heading(said(heading))

    def write_text(self, text: str) -> None:
        """Paragraphs; lists, which click marks with a backspace, keep their lines."""
        if spoken() == "en":
            super().write_text(text)
            return
        indent = " " * self.current_indent
        blocks = []
        for is_list, lines in paragraphs(text):
            if is_list:
                shown = [line if line[:1] in ("", " ") else said(line) for line in lines]
            else:
                shown = _wrapped(said(" ".join(lines)), self.width - self.current_indent)
            blocks.append("\n".join(f"{indent}{line}".rstrip() for line in shown))
        self.write("\n\n".join(blocks) + "\n")

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Options or commands, each with its description."""
        if spoken() == "en":
            super().write_dl(rows, col_max, col_spacing)
            return
        rows = list(rows)
        first = min(max(width(name) for name, _ in rows), col_max) + col_spacing
        margin = " " * self.current_indent
        for name, text in rows:
            lines = _wrapped(_described(text), max(self.width - first - 2, 10)) or [""]
            gap = " " * (first - width(name)) if width(name) <= first - col_spacing else None
            begin = f"{margin}{name}{gap}" if gap is not None else f"{margin}{name}\n{margin}{' ' * first}"
            self.write(f"{begin}{lines[0]}".rstrip() + "\n")
            for line in lines[1:]:
                self.write(f"{margin}{' ' * first}{line}\n")


class SpokenContext(click.Context):
    """The context of kconv's commands."""

    formatter_class = SpokenHelp


def paragraphs(text: str) -> Iterator[tuple[bool, list[str]]]:
    """Blocks between empty lines: whether its lines are to stay as they are, and the lines."""
    for block in re.split(r"\n[ \t]*\n", text.strip("\n")):
        lines = block.splitlines()
        if lines and lines[0].strip() == "\b":
            yield True, ["" if line.strip() == "\b" else line for line in lines[1:]]
        elif lines:
            yield False, [line.strip() for line in lines]


def _described(text: str) -> str:
    """A description, behind which click may have put ``[default: 1; required]``."""
    known = one_sentence(text)
    match = re.fullmatch(r"(.*?)(?:  )?\[([^\[\]]*)\]", text, re.DOTALL)
    if known is not None or match is None:
        return known or said(text)
    extra = "; ".join(said(each) for each in match[2].split("; "))
    return f"{one_sentence(match[1]) or said(match[1])}  [{extra}]" if match[1] else f"[{extra}]"


def _wrapped(text: str, columns: int) -> list[str]:
    """Lines of at most so many columns, of which Hangul takes two; broken at spaces."""
    lines: list[str] = []
    for word in re.findall(r" *[^ ]+", text):
        if lines and width(lines[-1]) + width(word) <= columns:
            lines[-1] += word
        else:
            lines.append(word.lstrip())
    return lines
