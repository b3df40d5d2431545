"""Processes as each operating system has them: their pipes, ends and limits, and the libraries they load.

No other place asks which system this is for any of that. Windows cannot wait for several pipes, so threads
read them there; it has no signals between processes, so what crashes is told by the status it ends with. The
constants below choose these ways on any system, which is how tests try them. docs/en/systems.md says what was
tried where. Standard library only: child processes begin here.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import IO, Any, Protocol

if sys.platform != "win32":
    import select

POLLS = sys.platform != "win32"
"""Whether the system can be asked which of several pipes has something to read."""
SIGNALS_TIME = sys.platform != "win32"
"""Whether a signal can end a process after so much processor time."""

TIME_IS_UP = 66
"""The exit code of a process that ran into ``limit_time`` where no signal says so."""
KILLED = getattr(signal, "SIGKILL", signal.Signals.SIGTERM)
"""What ends a process that nobody asks, as the kernel does where memory runs out."""
_OUT_OF_TIME = getattr(signal, "SIGPROF", None)
CRASHES = frozenset(
    getattr(signal, name)
    for name in ("SIGILL", "SIGSEGV", "SIGBUS", "SIGFPE", "SIGABRT")
    if hasattr(signal, name)
)
"""The signals of a process that has a fault, not of one that somebody ends."""

# How Windows says it: ntstatus.h.
_BY_STATUS = {
    0xC000001D: signal.SIGILL,  # STATUS_ILLEGAL_INSTRUCTION
    0xC0000096: signal.SIGILL,  # STATUS_PRIVILEGED_INSTRUCTION
    0xC0000005: signal.SIGSEGV,  # STATUS_ACCESS_VIOLATION
    0xC00000FD: signal.SIGSEGV,  # STATUS_STACK_OVERFLOW
    0xC0000374: signal.SIGSEGV,  # STATUS_HEAP_CORRUPTION
    0xC0000094: signal.SIGFPE,  # STATUS_INTEGER_DIVIDE_BY_ZERO
    0xC0000409: signal.SIGABRT,  # STATUS_STACK_BUFFER_OVERRUN, with which abort() ends, too
    0xC000013A: signal.SIGINT,  # STATUS_CONTROL_C_EXIT
}
_CHUNK, _MOST_CHUNKS = 1 << 18, 16  # what a thread has read before anybody takes it


def ending_signal(code: int) -> int | None:
    """The signal that ended a process with this code of ``Popen``; None where it ended by itself."""
    if code < 0:
        return -code
    found = _BY_STATUS.get(code & 0xFFFFFFFF)
    return None if found is None else int(found)


def signal_name(number: int | None) -> str:
    """``SIGILL`` and so on."""
    return next((each.name for each in signal.Signals if each == number), "of unknown name")


def is_out_of_time(number: int) -> bool:
    """Whether that is the signal of ``limit_time``."""
    return number == _OUT_OF_TIME


class Answers(Protocol):
    """The reading end of a pipe from one process."""

    def wait(self, seconds: float | None) -> bool:
        """Until there is something to read, or the end: whether that came within so many seconds."""

    def read_into(self, view: memoryview) -> int:
        """Some bytes, at least one; 0 at the end."""

    def close(self) -> None:
        """Close the pipe."""


def answers_of(pipe: IO[bytes]) -> Answers:
    """To read a process's answers from its standard output, an unbuffered pipe."""
    return _Polled(pipe) if POLLS else _Threaded(pipe)


def with_answers(pipes: Sequence[Answers], seconds: float | None = None) -> list[int]:
    """The places of those with something to read, or at their end; waits for one, for ever or so long."""
    polled = [pipe for pipe in pipes if isinstance(pipe, _Polled)]
    if len(polled) == len(pipes):
        return _polled(polled, seconds)
    end = None if seconds is None else time.monotonic() + seconds
    with _arrived:
        while True:
            found = [place for place, pipe in enumerate(pipes) if pipe.wait(0)]
            left = None if end is None else end - time.monotonic()
            if found or not pipes or (left is not None and left <= 0):
                return found
            _arrived.wait(left)


class _Polled:
    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe

    def wait(self, seconds: float | None) -> bool:
        return bool(_polled([self], seconds))

    def read_into(self, view: memoryview) -> int:
        count: int = self.pipe.readinto(view)
        return count

    def close(self) -> None:
        self.pipe.close()


def _polled(pipes: Sequence[_Polled], seconds: float | None) -> list[int]:
    if sys.platform != "win32":
        poll = select.poll()
        places = {pipe.pipe.fileno(): place for place, pipe in enumerate(pipes)}
        for number in places:
            poll.register(number, select.POLLIN)
        return sorted(places[number] for number, _ in poll.poll(None if seconds is None else seconds * 1000))
    raise NotImplementedError("pipes are read by threads there")


_arrived = threading.Condition(threading.RLock())
"""Notified whenever a thread has read something, or something that was read is taken."""


class _Threaded:
    """Reads ahead in a thread, a few megabytes at most."""

    def __init__(self, pipe: Any) -> None:
        self._pipe, self._ended, self._closed = pipe, False, False
        self._chunks: deque[memoryview] = deque()
        threading.Thread(target=self._read, name="answers", daemon=True).start()

    def _read(self) -> None:
        data: bytes | None = None
        while data != b"":
            try:
                data = os.read(self._pipe.fileno(), _CHUNK)
            except (OSError, ValueError):  # closed meanwhile
                data = b""
            with _arrived:
                while len(self._chunks) >= _MOST_CHUNKS and not self._closed:
                    _arrived.wait()
                if data:
                    self._chunks.append(memoryview(data))
                self._ended = not data
                _arrived.notify_all()
                if self._closed:
                    break
        with _arrived:
            if self._closed:
                self._pipe.close()

    def wait(self, seconds: float | None) -> bool:
        with _arrived:
            return bool(_arrived.wait_for(lambda: self._chunks or self._ended, seconds))

    def read_into(self, view: memoryview) -> int:
        self.wait(None)
        with _arrived:
            if not self._chunks:
                return 0
            chunk = self._chunks[0]
            count = min(len(chunk), len(view))
            view[:count] = chunk[:count]
            if count < len(chunk):
                self._chunks[0] = chunk[count:]
            else:
                self._chunks.popleft()
                _arrived.notify_all()
            return count

    def close(self) -> None:
        """The thread, if it still waits for the process, closes the pipe when that has ended."""
        with _arrived:
            self._closed = True
            _arrived.notify_all()
            if self._ended:
                self._pipe.close()


def is_reader_gone(number: int) -> bool:
    """Whether nobody reads any more what is written to this descriptor; False where that cannot be known."""
    if sys.platform != "win32":
        poll = select.poll()
        poll.register(number, 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def is_in_front(number: int) -> bool:
    """Whether the terminal is ours now, and not the shell's (``kconv … &``). Raises OSError if it is none."""
    return sys.platform == "win32" or os.tcgetpgrp(number) == os.getpgrp()


def interrupt(pid: int) -> None:
    """Have a process of ours put its things away and end; Windows can only end it. Raises OSError."""
    os.kill(pid, signal.SIGTERM)


def limit_time(seconds: float) -> None:
    """End this process after so many seconds of its processor time from now; 0 ends the limit.

    All threads count. It ends by a signal nobody else sends, or with TIME_IS_UP.
    """
    if SIGNALS_TIME and sys.platform != "win32":
        signal.setitimer(signal.ITIMER_PROF, seconds)
        return
    global _deadline
    first = _deadline is None
    _deadline = time.process_time() + seconds if seconds else float("inf")
    if first:
        threading.Thread(target=_watch_time, name="limit of time", daemon=True).start()


_deadline: float | None = None


def _watch_time() -> None:
    while time.process_time() < (_deadline or 0):
        time.sleep(0.02)
    os._exit(TIME_IS_UP)


def prepare_child() -> None:
    """Leave Ctrl-C to the parent, which ends this process; no core files of a stranger's data."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        import resource

        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGPROF, signal.SIG_DFL)


def address_space() -> int | None:
    """The limit of this process's addresses in bytes (``ulimit -v``); None where there is none."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def limit_address_space(most: int | None) -> None:
    """Set that limit; None takes it away. Raises OSError or ValueError where it cannot be set."""
    if sys.platform == "win32":
        raise OSError("no such limit")
    import resource

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY if most is None else most, hard))


def used_addresses() -> int:
    """Bytes of addresses this process has. Raises OSError where it is not Linux."""
    import mmap

    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * mmap.PAGESIZE


def file_limits() -> tuple[int | None, int] | None:
    """The largest file this process may write (None: any), and how many it may have open; None on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    size, count = (resource.getrlimit(n)[0] for n in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE))
    return None if size == resource.RLIM_INFINITY else size, count


def processors() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def library_names(name: str) -> tuple[str, ...]:
    """The file names a shared library may have here, the likeliest first."""
    return {
        "darwin": (f"lib{name}.dylib", f"lib{name}.so"),
        "win32": (f"{name}.dll", f"lib{name}.dll"),
    }.get(sys.platform, (f"lib{name}.so",))


LIBRARY_PATTERNS = ("*.so*", "*.dylib", "*.dll")
"""What shared libraries' names look like, on all systems."""


def own_library() -> Any:
    """The C library of this process; None on Windows, which has several. For ctypes."""
    if sys.platform == "win32":
        return None
    import ctypes

    return ctypes.CDLL(None)
