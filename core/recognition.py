"""English sentences recognized by their fixed words, and said in the language that kconv speaks.

Errors, notes and lines of prose are f-strings where they arise: that is how they are read and searched for,
and they stay whole through pipes, processes and files, where a template and its values would be lost. Here,
where they are shown, the catalogue's own entries tell what they are: ``{path} has no {what}`` is the sentence
that ends in what it says, and the values in its places go into the translation. Of several entries that fit,
the one with the most fixed words is meant. What is no sentence of kconv's (names, foreign text) stays.

Matching is linear in the text, whatever it holds: values come from files nobody has to trust.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from .language import Phrase, catalogue_bytes, spoken, translated

_LEAST = 7  # letters that are fixed in an entry, at least: `{a} of {b}` would fit anything
_BEGINNING = 3  # or so many with which it begins: `see {page}`
_DEPTH = 4  # a sentence as a value in a sentence, and so on
_NUMBER = re.compile(r"[\d,.]+")
_COLUMNS = re.compile(r"\S {2,}\S")  # of a table, whose cells have been said
_JOINTS = ("; ", ": ", ", ")


@dataclass(frozen=True)
class _Entry:
    """``pieces`` are the fixed texts before, between and behind the places called ``names``.

    ``counted``: the first or ``count`` is a number. ``weak``: of so few fixed words that only a whole text,
    and no value in another, is taken for it.
    """

    pieces: tuple[str, ...]
    names: tuple[str, ...]
    said: str
    counted: bool
    weak: bool

    def values(self, text: str) -> dict[str, str] | None:
        """What stands in the places of ``text``; None if it is another sentence."""
        first, *between, last = self.pieces
        end = len(text) - len(last)
        if not text.startswith(first) or not text.endswith(last) or end < len(first):
            return None
        found: list[str] = []
        at = len(first)
        for piece in between:
            to = text.find(piece, at, end)
            if to < 0:
                return None
            found.append(text[at:to])
            at = to + len(piece)
        found.append(text[at:end])
        values = dict(zip(self.names, found, strict=True))
        if any(values[name] != value for name, value in zip(self.names, found, strict=True)):
            return None
        # one of several such sentences would take the others for its value
        if any(_letters(piece) >= _BEGINNING and piece in value for piece in between for value in found):
            return None
        number = values.get("count", found[0])
        return None if self.counted and not _NUMBER.fullmatch(number) else values


def said(text: str) -> str:
    """``text`` in the language spoken now as far as it is made of kconv's own sentences, else unchanged."""
    if spoken() == "en" or not text:
        return text
    if isinstance(text, Phrase):
        known = translated(text)
        if known != text:
            return known
    return _said(str(text), 0) or text


def one_sentence(text: str) -> str | None:
    """``text`` in the language spoken now if it is one sentence of kconv's as a whole; else None."""
    return None if spoken() == "en" else _whole(text, 0)


def _said(text: str, depth: int) -> str | None:
    if _COLUMNS.search(text) and "\n" not in text:
        return None
    return _whole(text, depth) or _joined(text, depth)


def _whole(text: str, depth: int) -> str | None:
    exact, entries = _known(spoken())
    if text in exact:
        return exact[text]
    for entry in entries:
        values = None if entry.weak and depth else entry.values(text)
        if values is not None:
            filled = {name: _value(value, depth) for name, value in values.items()}
            return entry.said.format_map(filled)
    return None


def _value(value: str, depth: int) -> str:
    """A value may be a sentence itself; a single word is somebody's name."""
    if depth >= _DEPTH or " " not in value.strip():
        return value
    return _said(value, depth + 1) or value


def _joined(text: str, depth: int) -> str | None:
    """Sentences one after another: lines, a list, what follows the name of a place."""
    if depth >= _DEPTH:
        return None
    lines = text.split("\n")
    if len(lines) > 1 or text.startswith(" "):
        shown = [_line(line, depth) for line in lines]
        return None if shown == lines else "\n".join(shown)
    for joint in _JOINTS:
        head, found, tail = text.partition(joint)
        if not found:
            continue
        rest = _said(tail, depth + 1) if " " in tail else None
        before = _said(head, depth + 1) if " " in head else None
        if rest is not None or before is not None:
            return f"{head if before is None else before}{joint}{tail if rest is None else rest}"
    head, found, tail = text.partition(" (")
    if found and tail.endswith(")"):
        before, rest = _said(head, depth + 1), _said(tail[:-1], depth + 1) if " " in tail else None
        if before is not None or rest is not None:
            return f"{before or head} ({rest or tail[:-1]})"
    return None


def _line(line: str, depth: int) -> str:
    """A line of several, as far indented as it is."""
    text = line.lstrip(" ")
    return line[: len(line) - len(text)] + (_said(text, depth + 1) or text)


@cache
def _known(language: str) -> tuple[dict[str, str], tuple[_Entry, ...]]:
    """Entries without places by their text; those with places, the longest fixed words first."""
    exact: dict[str, str] = {}
    entries = []
    for form, said_, counted in _messages(catalogue_bytes(language)):
        parsed = _parsed(form)
        names = tuple(name for _, name in parsed if name is not None)
        if not names:
            exact[form.format()] = said_.format()
            continue
        pieces = [literal for literal, _ in parsed]
        if parsed[-1][1] is not None:
            pieces.append("")
        letters, begins = _letters("".join(pieces)), _letters(pieces[0])
        if letters >= _LEAST or begins >= _BEGINNING or (counted and names == ("count",)):
            weak = letters < _LEAST and not counted
            entries.append((letters, _Entry(tuple(pieces), names, _plain(said_), counted, weak)))
    entries.sort(key=lambda each: -each[0])
    return exact, tuple(entry for _, entry in entries)


def _letters(text: str) -> int:
    return len(re.sub(r"[^A-Za-z]", "", text))


def _plain(template: str) -> str:
    """Without formats: what is filled in is text already."""
    parts = []
    for literal, name in _parsed(template):
        parts.append(literal.replace("{", "{{").replace("}", "}}"))
        parts.append("" if name is None else f"{{{name}}}")
    return "".join(parts)


def _parsed(template: str) -> list[tuple[str, str | None]]:
    """Its fixed texts, each with the name of the place behind it."""
    from string import Formatter  # which takes time at every start, and English needs none of this

    return [(literal, name) for literal, name, _, _ in Formatter().parse(template)]


def _messages(content: bytes) -> Iterator[tuple[str, str, bool]]:
    """Every form of every entry of a .mo file, its translation, and whether it is counted."""
    _, _, count, originals, translations = struct.unpack_from("<5I", content)

    def text(table: int, number: int) -> str:
        length, start = struct.unpack_from("<2I", content, table + 8 * number)
        return content[start : start + length].decode()

    for number in range(count):
        forms = text(originals, number)
        for form in forms.split("\0") if forms else ():
            yield form, text(translations, number).split("\0")[0], "\0" in forms
