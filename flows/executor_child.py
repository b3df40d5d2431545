"""The side of a process of ``flows/executor.py``: it runs one task after the other until its parent is gone.

Requests and answers are pickles with their length before them; both sides are of one kconv.
"""

from __future__ import annotations

import pickle
import signal
import struct
import time
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ..core.child import take, write
from ..core.errors import KconvError

HEAD = struct.Struct(">Q")
"""Before each pickle: its length in bytes."""
_INTERVAL = 1.0  # seconds between two reports of one stage

_in_child = False
_struck = False
_stage, _reported = "", 0.0


def main(arguments: Sequence[str]) -> int:
    """Run tasks. A SIGTERM interrupts as Ctrl-C does, so that temporary files are taken away."""
    global _in_child
    _in_child = True
    signal.signal(signal.SIGTERM, _strike)
    try:
        while True:
            (size,) = HEAD.unpack(take(HEAD.size))
            function, given = pickle.loads(take(size))
            _answer(*run_task(function, given))
    except KeyboardInterrupt:
        return 0


def report_progress(stage: str, done: int, total: int) -> None:
    """A Progress for tasks: it reaches the executor's ``progress`` where that can be, else nobody."""
    global _stage, _reported
    if _struck:  # a library lost the first, as imports and callbacks from C do
        raise KeyboardInterrupt
    now = time.monotonic()
    if _in_child and (stage != _stage or now - _reported >= _INTERVAL):
        _stage, _reported = stage, now
        _answer("progress", (stage, done, total))


def _strike(number: int, frame: FrameType | None) -> None:
    global _struck
    if not _struck:
        _struck = True
        raise KeyboardInterrupt


def run_task(function: Any, given: Sequence[Any]) -> tuple[str, Any]:
    """``("value", what it returned)``, or ``("error", the exception as it can be sent)``."""
    try:
        return "value", function(*given)
    except Exception as error:
        if _struck:  # a library made something else of the interrupt
            raise KeyboardInterrupt from error
        return "error", _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The exception as it can be sent; a library's own kinds become RuntimeError, with their words."""
    known = isinstance(error, KconvError) or type(error).__module__ == "builtins"
    text = "".join(traceback.format_exception(error))
    try:
        sent = pickle.loads(pickle.dumps(error)) if known else None
    except Exception:
        sent = None
    if not isinstance(sent, Exception):
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(text)
    return sent


def _answer(kind: str, content: Any) -> None:
    data = pickle.dumps((kind, content))
    write(HEAD.pack(len(data)) + data)
