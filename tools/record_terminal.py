"""A recording of commands in a terminal as one SVG that moves, for the README: docs/assets/demo.svg.

    python tools/record_terminal.py                    # the demo of the README, in English
    python tools/record_terminal.py --lang ko          # docs/assets/demo.ko.svg

The commands are run in a terminal of their own (a pty) and everything they write is kept with its time, as
pyte, a terminal in memory, shows it. Each line of the screen becomes an element that is visible while it
stood there. Waiting is shortened: a command takes at most ``SHOWN`` seconds of the recording. Where nothing
may move (prefers-reduced-motion) the last picture stands; colours follow the reader's light or dark.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import pyte

ROOT = Path(__file__).parent.parent
COLUMNS, ROWS = 92, 26
SHOWN = 6.0  # seconds of the recording, at most, for each command
TYPING = 0.03  # seconds a letter of a command
PAUSE = 1.0  # after each command
LAST = 5.0  # the last picture
STEP = 0.12  # between two pictures, at least

CELL, LINE, SIZE = 8.4, 19, 14  # a cell's width, a line's height, the letters' size
MARGIN, BAR = 16, 34
COLOURS = {
    "red": ("#b42318", "#ff7b72"),
    "green": ("#116329", "#56d364"),
    "brown": ("#8a5a00", "#e3b341"),
    "blue": ("#0550ae", "#79c0ff"),
    "magenta": ("#8250df", "#d2a8ff"),
    "cyan": ("#0b6a75", "#56d4dd"),
    "brightblack": ("#57606a", "#8b949e"),
}
FONT = 'ui-monospace, Menlo, "DejaVu Sans Mono", D2Coding, "Noto Sans Mono CJK KR", monospace'
STYLE = """
text { font: %(size)spx %(font)s; white-space: pre; fill: var(--ink); }
svg { --paper: #fff; --edge: #d0d7de; --ink: #1f2328; %(light)s }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --edge: #30363d; --ink: #e6edf3; %(dark)s }
}
.bold { font-weight: 700; }
.row { visibility: hidden; animation: %(seconds).2fs step-end infinite; }
.last { visibility: visible; }
@media (prefers-reduced-motion: reduce) { .row { animation: none !important; } }
"""


class Run(NamedTuple):
    """Neighbouring cells of one look: ``column`` of the first, ``cells`` they take, classes of the style."""

    column: int
    cells: int
    text: str
    look: str


Picture = tuple[tuple[Run, ...], ...]


@dataclass
class Recording:
    """Pictures of the screen and when (seconds) each began; ``end`` is when the last is over."""

    pictures: list[tuple[float, Picture]]
    end: float = 0.0


def picture_of(screen: pyte.Screen) -> Picture:
    """What stands on the screen, without the empty ends of lines."""
    return tuple(tuple(_runs(screen, row)) for row in range(screen.lines))


def _runs(screen: pyte.Screen, row: int) -> Iterator[Run]:
    cells = [(at, screen.buffer[row][at]) for at in range(screen.columns)]
    wide = {at - 1 for at, cell in cells if cell.data == ""}  # the second half of a wide letter is empty
    while cells and cells[-1][1].data in (" ", ""):
        cells.pop()
    for (look, is_wide), group in groupby(
        [(at, cell) for at, cell in cells if cell.data],
        key=lambda each: (_look(each[1]), each[0] in wide),
    ):
        same = list(group)
        text = "".join(cell.data for _, cell in same)
        yield Run(same[0][0], len(same) * (2 if is_wide else 1), text, look)


def _look(cell: pyte.screens.Char) -> str:
    colour = cell.fg if cell.fg in COLOURS else ""
    return " ".join(filter(None, (colour, "bold" if cell.bold else "")))


def record(
    commands: Sequence[str], folder: Path, environment: dict[str, str], shown: float = SHOWN
) -> Recording:
    """Run ``commands`` in ``folder``, one after the other, each in a shell; RuntimeError where one fails."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    recording = Recording([])
    now = 0.0
    for command in commands:
        stream.feed(b"\x1b[32m$\x1b[0m ")
        for letter in command:
            stream.feed(letter.encode())
            now += TYPING
            _keep(recording, now, picture_of(screen))
        stream.feed(b"\r\n")
        taken = list(_taken(command, folder, environment))
        speed = max(1.0, (taken[-1][0] if taken else 0.0) / shown)
        for seconds, written in taken:
            stream.feed(written)
            _keep(recording, now + seconds / speed, picture_of(screen))
        now += (taken[-1][0] / speed if taken else 0.0) + PAUSE
    stream.feed(b"\x1b[32m$\x1b[0m ")
    recording.pictures.append((now, picture_of(screen)))
    recording.end = now + LAST
    return recording


def _keep(recording: Recording, now: float, picture: Picture) -> None:
    """Add a picture; one that stood for less than ``STEP`` is replaced by it."""
    pictures = recording.pictures
    if pictures and now - pictures[-1][0] < STEP:
        pictures[-1] = (pictures[-1][0], picture)
    elif not pictures or pictures[-1][1] != picture:
        pictures.append((now, picture))


def _taken(command: str, folder: Path, environment: dict[str, str]) -> Iterator[tuple[float, bytes]]:
    """What a command writes to its terminal, with the seconds since its start."""
    # they would count for more than the size of the terminal
    environment = {key: value for key, value in environment.items() if key not in ("COLUMNS", "LINES")}
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    started = time.monotonic()
    with subprocess.Popen(
        ["sh", "-c", command], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        while True:
            try:
                written = os.read(ours, 1 << 16)
            except OSError:  # Linux: the other end is closed
                break
            if not written:
                break
            yield time.monotonic() - started, written
    os.close(ours)
    if process.returncode:
        raise RuntimeError(f"{command} ended with exit code {process.returncode}")


def svg_of(recording: Recording, title: str) -> str:
    """The recording as one SVG: no script, nothing loaded."""
    width, height = round(COLUMNS * CELL + 2 * MARGIN), BAR + ROWS * LINE + MARGIN
    rules, rows = [], []
    for number, (row, runs, begin, end) in enumerate(_stays(recording)):
        last = end >= recording.end
        frames = [(0.0, "hidden")] if begin > 0 else []
        frames += [(begin, "visible")] + ([] if last else [(end, "hidden")])
        steps = " ".join(f"{100 * at / recording.end:.2f}%{{visibility:{kind}}}" for at, kind in frames)
        rules.append(f"@keyframes k{number} {{ {steps} }}")
        text = "".join(_text(run, row) for run in runs)
        rows.append(f'<g class="row{" last" if last else ""}" style="animation-name:k{number}">{text}</g>')
    palette = [" ".join(f"--{name}: {both[at]};" for name, both in COLOURS.items()) for at in (0, 1)]
    style = STYLE % {
        "size": SIZE,
        "font": FONT,
        "seconds": recording.end,
        "light": palette[0],
        "dark": palette[1],
    }
    style += " ".join(f".{name} {{ fill: var(--{name}); }}" for name in COLOURS)
    dots = "".join(
        f'<circle cx="{MARGIN + 4 + 18 * at}" cy="17" r="5" fill="var(--edge)"/>' for at in range(3)
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}"'
            f' height="{height}" role="img" aria-label={quoteattr(title)}>',
            f"<title>{escape(title)}</title>",
            f"<style>{style}\n{' '.join(rules)}</style>",
            f'<rect x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8" fill="var(--paper)"'
            ' stroke="var(--edge)"/>',
            dots,
            *rows,
            "</svg>\n",
        ]
    )


def _stays(recording: Recording) -> Iterator[tuple[int, tuple[Run, ...], float, float]]:
    """Each line with its row and from when to when it stood there unchanged."""
    ends = [begin for begin, _ in recording.pictures[1:]] + [recording.end]
    for row in range(ROWS):
        stood = [
            (picture[row], begin, end) for (begin, picture), end in zip(recording.pictures, ends, strict=True)
        ]
        for runs, group in groupby(stood, key=lambda each: each[0]):
            same = list(group)
            if runs:
                yield row, runs, same[0][1], same[-1][2]


def _text(run: Run, row: int) -> str:
    x, y = MARGIN + run.column * CELL, BAR + (row + 1) * LINE - 5
    look = f' class="{run.look}"' if run.look else ""
    return (
        f'<text x="{x:.1f}" y="{y}" textLength="{run.cells * CELL:.1f}"{look}'
        f' lengthAdjust="spacingAndGlyphs">{escape(run.text)}</text>'
    )


def main() -> None:
    """Record the demo of the README."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lang", choices=("en", "ko"), default="en")
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    name = "demo.svg" if asked.lang == "en" else "demo.ko.svg"
    output = asked.output or ROOT / "docs" / "assets" / name
    language = {"en": "C.UTF-8", "ko": "ko_KR.UTF-8"}[asked.lang]
    environment = {**os.environ, "TERM": "xterm-256color", "LC_ALL": language, "LANG": language}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    commands = [
        "kconv to-gguf demo-42dot -q q4_0 -q q8_0 --chat-template 42dot",
        'kconv run demo-42dot-Q4_0.gguf "한국의 수도는 어디인가요?" --seed 1',
    ]
    with tempfile.TemporaryDirectory() as folder:
        made = ["kconv", "demo-checkpoint", "42dot", "demo-42dot"]
        subprocess.run(made, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
        recording = record(commands, Path(folder), environment)
    output.write_text(svg_of(recording, "$ " + " · $ ".join(commands)), encoding="utf-8")
    size = output.stat().st_size
    print(f"{output}: {len(recording.pictures)} pictures, {recording.end:.0f} s, {size:,} bytes")


if __name__ == "__main__":
    main()
