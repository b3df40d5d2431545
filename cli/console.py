"""What people read: escaped names, sizes, tables. What programs read: one JSON object."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import EnvironmentProblem, ProofError
from ..core.language import _, phrase, spoken, template
from ..core.recognition import said
from ..core.sizes import size_text as size_text
from .layout import columns, squeezed, wrapped
from .layout import width as width

if TYPE_CHECKING:
    from ..converters.results import Output
    from ..core.model import Note


def printable(text: str, *, keep: str = "") -> str:
    """``text`` with everything a terminal might obey written as an escape; ``keep`` names exceptions.

    Names come from files nobody has to trust: control characters, direction overrides, lone surrogates.
    """
    return "".join(
        char if char.isprintable() or char in keep else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


# C0 and C1 control characters but tab and newline: what could move the cursor or rewrite the screen.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}


def terminal_text(text: str) -> str:
    """Text a model wrote, fit for a terminal: joined emoji and all spaces stay, control codes do not."""
    return text.translate(_CONTROLS)


def count_text(count: int) -> str:
    """A number of weights as people say it: ``1.44 billion (1,439,270,912)``, ``14.4억(1,439,270,912)``."""
    if spoken() == "ko":
        steps = ((10**12, "조"), (10**8, "억"), (10**4, "만"))
        known = (f"{count / step:.3g}{word}({count:,})" for step, word in steps if count >= step)
        return next(known, f"{count:,}")
    for step, word in ((10**12, "trillion"), (10**9, "billion"), (10**6, "million")):
        if count >= step:
            return f"{count / step:.3g} {word} ({count:,})"
    return f"{count:,}"


def seconds_text(seconds: float) -> str:
    """A duration: ``0.8 s``, ``12 s``, ``3 min 05 s``."""
    if seconds < 10:
        return _("{seconds} s", seconds=f"{seconds:.1f}")
    whole = round(seconds)
    if whole < 60:
        return _("{seconds} s", seconds=whole)
    return _("{minutes} min {seconds} s", minutes=whole // 60, seconds=f"{whole % 60:02d}")


def plural(count: int, word: str) -> str:
    """``1 tensor``, ``1,200 tensors``."""
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def table(rows: Iterable[Sequence[str]], *, header: Sequence[str] = (), right: Sequence[int] = ()) -> str:
    """Rows in columns, two spaces apart; columns whose index is in ``right`` are set flush right.

    Where standard output is a terminal, no line is longer than that is wide.
    """
    body = [[printable(said(cell) if " " in cell else cell) for cell in row] for row in rows]
    head = [said(cell) for cell in header]
    lines = [head, *body] if head else body
    if not lines:
        return ""
    sizes = [max(width(line[column]) for line in lines) for column in range(len(lines[0]))]
    room = columns(sys.stdout)
    if room is not None and sum(sizes) + 2 * (len(sizes) - 1) > room:
        return squeezed(body, head, right, room)

    def pad(cell: str, column: int) -> str:
        space = " " * (sizes[column] - width(cell))
        return space + cell if column in right else cell + space

    return "\n".join("  ".join(pad(cell, i) for i, cell in enumerate(line)).rstrip() for line in lines)


OUTPUT_HEADER = ("file", "type", "size", "bits per weight", "formats")


def output_row(output: Output) -> tuple[str, ...]:
    """A file that was made, as a line of a table under ``OUTPUT_HEADER``."""
    formats = ", ".join(name for name, _ in output.formats)
    bits = f"{output.bits_per_weight:.2f}"
    return str(output.path), output.type, size_text(output.bytes), bits, formats


def print_parts(outputs: Iterable[Output], sources: Sequence[Path] = ()) -> None:
    """Which files are the first of several, and which parts an earlier run left, but for the ``sources``."""
    from ..core.gguf_split import other_parts

    read = {path.absolute() for path in sources}
    for output in outputs:
        if output.parts:
            say(f"{output.path.name} is the first of {len(output.parts)} parts; pass this one to llama.cpp")
        if not output.path.parent.is_dir():  # in an object store
            continue
        left = [path for path in other_parts(output.path) if path not in read]
        if left:
            say(
                f"{plural(len(left), 'part')} of that name from an earlier run are still there "
                f"({left[0].name} …); delete what you do not need"
            )


def markdown_table(rows: Iterable[Sequence[str]], *, header: Sequence[str]) -> str:
    """The same rows as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def say(text: str, *, err: bool = False, wrap: bool = True) -> None:
    """A line of prose: on standard output, or beside it (``err``) where that belongs to JSON or text.

    On a terminal it is broken between words; with ``wrap`` false it is not, as a command one may copy.
    """
    text = printable(said(text), keep="\n\t")
    room = columns(sys.stderr if err else sys.stdout) if wrap else None
    click.echo(wrapped(text, room), err=err)


def show_log(text: str) -> None:
    """A piece of a library's log on standard error; if nobody reads it, no matter."""
    with contextlib.suppress(OSError):
        sys.stderr.write(terminal_text(text))


def say_notes(notes: Iterable[Note]) -> None:
    """A line for each note, warnings named so."""
    for note in notes:
        say_note(note.name, note.message, warning=note.warning)


def say_note(name: str, message: str, *, warning: bool) -> None:
    """The line for a note of that name."""
    known = {"name": name, "message": message}
    say(_("warning ({name}): {message}", **known) if warning else _("note ({name}): {message}", **known))


def emit_json(value: Any) -> None:
    """The one JSON object of a command with ``--json``.

    JSON has no word for NaN and infinity, which the figures of a damaged file can be: they become null.
    """
    text = json.dumps(_finite(value), indent=2, default=_plain, allow_nan=False, ensure_ascii=False)
    click.echo(_NOT_ASCII.sub(partial(_shown, getattr(sys.stdout, "encoding", None) or "utf-8"), text))


_NOT_ASCII = re.compile(r"[^\x00-\x7e]")


def _shown(encoding: str, match: re.Match[str]) -> str:
    """A character, or JSON's escape of it where the output cannot hold it or a terminal would obey it."""
    character = match[0]
    try:
        character.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(character)[1:-1]
    return character if character.isprintable() else json.dumps(character)[1:-1]


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def source_text(folder: Path) -> str:
    """Where a checkpoint comes from: a folder, or of one in the Hub's cache repository and commit."""
    from ..core.reading import hub_origin

    repository, commit = hub_origin(folder)
    return str(folder) if repository is None else f"{repository}@{(commit or '')[:12]}"


def verify_command(artifact: Path, checkpoint: str | Path) -> str:
    """What to type to prove one against the other."""
    return shlex.join(["kconv", "verify", str(artifact), "--against", str(checkpoint)])


_UNPROVEN = {
    "failed": phrase("kconv: the proof failed: {line}"),
    "not decided": phrase("kconv: the proof could not be finished: {line}"),
}


def end_unproven(proofs: Iterable[tuple[str, str]], *, silently: bool = False) -> None:
    """End the command unless every proof was good enough: with exit code 1 if one failed, else with 4.

    ``proofs`` are verdicts and what to say of each on standard error, which ``silently`` leaves out.
    """
    bad = [(verdict, line) for verdict, line in proofs if verdict in _UNPROVEN]
    if not bad:
        return
    for verdict, line in [] if silently else bad:
        say(template(_UNPROVEN[verdict]).format(line=line), err=True)
    sys.stdout.flush()  # here, where a full disk or a reader that went away is still told
    failed = any(verdict == "failed" for verdict, _ in bad)
    raise click.exceptions.Exit(ProofError.exit_code if failed else EnvironmentProblem.exit_code)


def _plain(value: Any) -> Any:
    """What json cannot write by itself: paths as text, sets and bytes readable."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)
