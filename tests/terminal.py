"""A terminal of our own: what a command shows in it, when, and what is left on the screen."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


@dataclass
class Recording:
    """What came out, with the seconds after the start at which it came."""

    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    code: int | None = None

    @property
    def text(self) -> str:
        """All of it, control characters and all."""
        return b"".join(piece for _, piece in self.pieces).decode("utf-8", "replace")

    @property
    def gaps(self) -> list[tuple[float, float]]:
        """Every silence: how long it was and when it began, the longest first."""
        times = [0.0, *(at for at, _ in self.pieces), self.seconds]
        return sorted(((after - at, at) for at, after in itertools.pairwise(times)), reverse=True)

    def at(self, words: str) -> float:
        """When ``words`` were there."""
        text = b""
        for when, piece in self.pieces:
            text += piece
            if words.encode() in text:
                return when
        raise AssertionError(f"{words!r} was not shown")


def record(
    command: Sequence[str],
    *,
    columns: int = 80,
    rows: int = 24,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float = 120.0,
    on_output: Callable[[str, subprocess.Popen[bytes]], None] | None = None,
) -> Recording:
    """Run ``command`` in a terminal of that size; ``on_output`` sees all there is whenever more has come."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    made = Recording()
    begun = time.monotonic()
    child = subprocess.Popen(
        command,
        stdin=follower,
        stdout=follower,
        stderr=follower,
        cwd=cwd,
        env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
        start_new_session=True,
    )
    os.close(follower)
    try:
        while time.monotonic() - begun < timeout:
            if not select.select([leader], [], [], 1.0)[0]:
                continue
            with contextlib.suppress(OSError):  # the other end is closed
                if piece := os.read(leader, 1 << 16):
                    made.pieces.append((time.monotonic() - begun, piece))
                    if on_output is not None:
                        on_output(made.text, child)
                    continue
            break
        made.seconds = time.monotonic() - begun
        made.code = child.wait(timeout=10)
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        os.close(leader)
    return made


def screen(text: str, columns: int) -> list[str]:
    """The lines a terminal of that width shows in the end; a longer line goes on in the next one.

    It knows what kconv uses: carriage return, line feed, erasing to the end of the line, colours.
    """
    lines: list[list[str]] = [[]]
    row = column = place = 0
    while place < len(text):
        found = _SEQUENCE.match(text, place)
        if found:
            place = found.end()
            if found[2] == "K":
                del lines[row][column:]
            elif found[2] != "m":
                raise AssertionError(f"an escape sequence that nobody asked for: {found[0]!r}")
            continue
        char, place = text[place], place + 1
        if char == "\r":
            column = 0
        elif char == "\n":
            row, column = row + 1, 0
        else:
            wide = 2 if unicodedata.east_asian_width(char) in "WF" else 1
            if column + wide > columns:
                row, column = row + 1, 0
            while len(lines) <= row:
                lines.append([])
            line = lines[row]
            line += [" "] * (column - len(line))
            line[column : column + wide] = [char, ""][:wide]
            column += wide
        while len(lines) <= row:
            lines.append([])
    return ["".join(line).rstrip() for line in lines]
