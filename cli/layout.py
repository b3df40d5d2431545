"""Text that fits the terminal it is printed on: words are not cut at its edge, columns not torn apart.

What goes to a file or a pipe stays as it is, a line for each thing.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_GAP = 2  # columns between two of a table
_WORD = 24  # columns of the longest word of a cell that is kept in one piece at any cost


def columns(stream: Any) -> int | None:
    """How wide the terminal is that ``stream`` goes to; None where it is none, or does not say."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError, AttributeError):
        return None


def width(text: str) -> int:
    """Columns ``text`` takes in a terminal, where Hangul and Hanja take two."""
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def cropped(text: str, room: int) -> str:
    """The beginning of ``text`` that fits into ``room`` columns, with ... behind it where more follows."""
    if width(text) <= room:
        return text
    while text and width(text) > room - 3:
        text = text[:-1]
    return f"{text}..."[: max(0, room)]


def wrapped(text: str, room: int | None, indent: int = 2) -> str:
    """``text`` in lines of at most ``room`` columns, broken between words; None: as it is.

    The rest of a line stands ``indent`` columns to the right of its beginning.
    """
    if room is None:
        return text
    return "\n".join(line for long in text.split("\n") for line in _wrapped(long, room, indent))


def _wrapped(line: str, room: int, indent: int) -> list[str]:
    if width(line) <= room:
        return [line]
    from rich.text import Text

    words = line.lstrip(" ")
    first = len(line) - len(words)
    rest = first + indent if first + indent < room // 2 else 0
    begin = Text(words).wrap(_console(room), room - first)[0].plain
    pieces = Text(words[len(begin) :].lstrip()).wrap(_console(room), room - rest)
    return [" " * first + begin.rstrip(), *(" " * rest + piece.plain.rstrip() for piece in pieces)]


def squeezed(rows: Sequence[Sequence[str]], header: Sequence[str], right: Collection[int], room: int) -> str:
    """A table for which ``room`` columns are not enough as it is.

    Cells are broken between words where that is enough; figures (``right``) are not broken. Else every row
    is a paragraph, its cells named by the header.
    """
    count = len(header or rows[0])
    cells = [max((width(row[at]) for row in rows), default=0) for at in range(count)]
    natural = [max(size, width(header[at]) if header else 0) for at, size in enumerate(cells)]
    least = [
        max(
            max((width(row[at]) if at in right else _longest_word(row[at]) for row in rows), default=0),
            _longest_word(header[at]) if header else 0,
        )
        for at in range(count)
    ]
    room_for_cells = room - _GAP * (count - 1)
    if sum(least) > room_for_cells:
        return "\n".join(wrapped(paragraph, room) for paragraph in _paragraphs(rows, header))
    sizes = list(least)
    for wanted in (cells, natural):  # what is said is worth more than what it is called
        while sum(sizes) < room_for_cells and any(map(int.__gt__, wanted, sizes)):
            sizes[max(range(count), key=lambda at: wanted[at] - sizes[at])] += 1
    return _drawn(rows, header, right, sizes)


def _drawn(
    rows: Sequence[Sequence[str]], header: Sequence[str], right: Collection[int], sizes: Sequence[int]
) -> str:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=bool(header))
    for at, size in enumerate(sizes):
        name = Text(header[at]) if header else ""
        table.add_column(
            name, width=size, justify="right" if at in right else "left", overflow="fold", vertical="top"
        )
    for row in rows:
        indents = [len(cell) - len(cell.lstrip(" ")) for cell in row]
        cells = zip(row, indents, strict=True)
        table.add_row(*(Padding(Text(cell.strip(" ")), (0, 0, 0, indent)) for cell, indent in cells))
    console = _console(sum(sizes) + _GAP * len(sizes))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().rstrip("\n").split("\n"))


def _paragraphs(rows: Sequence[Sequence[str]], header: Sequence[str]) -> list[str]:
    """The first cell of each row, and under it the others behind what they are called."""
    paragraphs = []
    for row in rows:
        names = header or [""] * len(row)
        cells = [f"{name} {cell}".strip() for name, cell in zip(names[1:], row[1:], strict=True) if cell]
        paragraphs += [row[0], f"  {', '.join(cells)}"] if cells else [row[0]]
    return paragraphs


def _longest_word(text: str) -> int:
    return min(_WORD, max((width(word) for word in text.split()), default=0))


def _console(size: int) -> Console:
    """One that lays text out and prints nothing."""
    import io

    from rich.console import Console

    return Console(
        file=io.StringIO(), width=size, color_system=None, force_terminal=False, legacy_windows=False
    )
