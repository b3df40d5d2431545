"""The line at the bottom of a terminal that says what is being done, drawn by a thread of its own.

Importing torch or waiting for a child, the main thread has no time to say that it is alive. Whatever is
printed meanwhile through Python's streams stands above the line: while it is shown, they are replaced by
ones that wipe it away first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from ..core.language import _
from ..core.system_processes import is_in_front
from .console import seconds_text, size_text
from .layout import columns, cropped, width

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

_TICK = 0.1  # seconds between two pictures
_QUIET = 0.15  # seconds of silence before the line is drawn
_WAITED = 3.0  # seconds after which it is said for how long something has been going on
_DOTS, _ASCII = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_BAR, _LEAST_BAR = 24, 8  # columns
_COLUMNS = 80  # of terminals that do not say how wide they are
_WIPE = "\r\x1b[K"


@dataclass(frozen=True)
class Doing:
    """What is being done, ``since`` when (monotonic); ``total`` is 0 where nobody knows how much it is."""

    title: str
    since: float
    done: int = 0
    total: int = 0
    in_bytes: bool = False


class StatusLine:
    """The line on ``stream``, a terminal; shown between ``start`` and ``stop``."""

    def __init__(self, stream: TextIO, doing: Doing) -> None:
        self._stream = stream
        self._doing: Doing | None = doing
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kconv-status-line", daemon=True)
        self._drawn, self._at_start, self._written = False, True, 0.0
        self._frame = 0
        self._bar: _Bar | None = None
        self._streams: tuple[Any, Any] = (None, None)

    def show(self, doing: Doing | None) -> None:
        """From now on this is being done, which is drawn when its time comes; None: no line is wanted."""
        self._doing = doing

    def start(self) -> None:
        """Show the line from now on; without it where there are no more threads."""
        self._streams = sys.stdout, sys.stderr
        sys.stderr = _Above(sys.stderr, self)
        if sys.stdout is not None and sys.stdout.isatty():
            sys.stdout = _Above(sys.stdout, self)
        with contextlib.suppress(RuntimeError):
            self._thread.start()

    def stop(self) -> None:
        """Wipe the line away and give the streams back."""
        self._ended.set()
        sys.stdout, sys.stderr = self._streams
        if self._thread.ident is not None:
            self._thread.join(timeout=1.0)  # not for ever: it may wait for a terminal that stands still
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._wipe()

    @contextlib.contextmanager
    def above(self, text: str) -> Iterator[None]:
        """Where ``text`` is written: the line is not there meanwhile, nor until a line has ended."""
        with self._lock:
            drawn = self._drawn
            self._wipe()
            yield
            self._at_start, self._written = text.endswith("\n"), time.monotonic()
            if drawn and self._at_start and self._doing is not None:
                with contextlib.suppress(Exception):
                    self._draw(self._doing)

    def _wipe(self) -> None:
        if self._drawn:
            self._drawn = False
            self._stream.write(_WIPE)
            self._stream.flush()

    def _run(self) -> None:
        while not self._ended.wait(_TICK):
            with contextlib.suppress(Exception), self._lock:  # the work is worth more than the line
                doing = self._doing
                quiet = time.monotonic() - self._written >= _QUIET
                if doing is None or self._ended.is_set() or not _is_in_front(self._stream):
                    self._wipe()
                elif self._at_start and (quiet or self._drawn):
                    self._draw(doing)

    def _draw(self, doing: Doing) -> None:
        self._frame += 1
        text = self._text(doing, columns(self._stream) or _COLUMNS)
        self._drawn = True
        self._stream.write(f"\r{text}\x1b[K")
        self._stream.flush()

    def _text(self, doing: Doing, room: int) -> str:
        frames = _DOTS if speaks_unicode(self._stream) else _ASCII
        room -= 3  # the spinner, a space, and the last column, where some terminals begin a new line
        turning = frames[self._frame % len(frames)]
        if 0 <= doing.done < doing.total:
            if self._bar is None:
                self._bar = _Bar(self._stream)
            return f"{turning} {self._bar.text(doing, room)}"
        waited = time.monotonic() - doing.since
        after = f" ({_whole(waited)})" if waited >= _WAITED else ""
        return f"{turning} {cropped(doing.title, room - width(after))}{after}"


class _Bar:
    """A stage of which it is known how much there is: share, rate and remaining time, estimated by rich."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import Progress

        colours: Any = None if os.environ.get("NO_COLOR") else "auto"
        self._console: Console = Console(
            file=stream, force_terminal=True, color_system=colours, width=_COLUMNS, legacy_windows=False
        )
        self._progress: Bars = Progress(console=self._console, auto_refresh=False)
        self._current: tuple[str, float] = "", 0.0

    def text(self, doing: Doing, room: int) -> str:
        """A picture of it, at most ``room`` columns wide: what there is no room for is left out."""
        if self._current != (doing.title, doing.since):
            for before in self._progress.task_ids:
                self._progress.remove_task(before)
            self._progress.add_task(doing.title, total=doing.total)
            self._current = doing.title, doing.since
        task = self._progress.tasks[0]
        self._progress.update(task.id, completed=doing.done, total=doing.total)
        told = [f"{int(100 * doing.done / doing.total):3d} %"]
        if task.speed and doing.in_bytes:
            told.append(f"{size_text(task.speed)}/s")
        elif task.speed:
            told.append(f"{task.speed:,.{0 if task.speed >= 10 else 1}f}/s")
        if task.time_remaining is not None:
            told.append(_("{time} left", time=_whole(task.time_remaining)))
        while len(told) > 1 and width(doing.title) + 2 + width("  ".join(told)) > room:
            told.pop(1)  # the rate first
        figures = "  ".join(told)
        title = cropped(doing.title, room - width(figures) - 2)
        left = room - width(title) - width(figures) - 4
        bar = f"{self._drawn(doing, min(left, _BAR))}  " if left >= _LEAST_BAR else ""
        return f"{title}  {bar}{figures}"

    def _drawn(self, doing: Doing, size: int) -> str:
        from rich.progress_bar import ProgressBar

        bar = ProgressBar(
            total=doing.total, completed=doing.done, width=size, complete_style="cyan", finished_style="cyan"
        )
        with self._console.capture() as capture:
            self._console.print(bar, end="")
        return capture.get().rstrip("\n")


class _Above:
    """A stream whose text stands above the line; in all else the stream itself."""

    def __init__(self, stream: Any, line: StatusLine) -> None:
        self._stream, self._line = stream, line

    def write(self, text: str) -> int:
        """As the stream does, once the line is wiped away."""
        if not text or self._line._ended.is_set():  # loggers keep a stream for longer than it is shown
            return int(self._stream.write(text))
        with self._line.above(text):
            written = self._stream.write(text)
            self._stream.flush()
        return int(written)

    def writelines(self, lines: Any) -> None:
        """All of them at once."""
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _whole(seconds: float) -> str:
    """As ``seconds_text``, without tenths, which nobody can foretell."""
    return _("{seconds} s", seconds=int(seconds)) if seconds < 60 else seconds_text(seconds)


def _is_in_front(stream: TextIO) -> bool:
    """Whether the terminal is ours now, and not the shell's (``kconv … &``)."""
    try:
        return is_in_front(stream.fileno())
    except (OSError, ValueError):  # a terminal that controls nobody, or not POSIX
        return True


def is_drawable(stream: Any) -> bool:
    """Whether a line can be wiped away and drawn again on ``stream``."""
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def speaks_unicode(stream: Any) -> bool:
    """Whether braille dots and the like arrive."""
    return (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "").startswith("utf")
