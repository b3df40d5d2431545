"""Processes of their own for libraries that a stranger's file may crash, hang or fill the memory of.

``Child`` starts one (``core/child.py`` is its side) and interprets how it ended. Two kinds must never be
taken for each other:

- **ChildRefused**: the child, or its library, ended itself over what it was given: an exit code of its
  protocol, an abort at one of the library's own checks, or a limit of time or memory that kconv had set for
  one input. This is a finding about the input; whoever asked puts it in words.
- **ChildDied**: it was killed, crashed, gave no answer in a generous time, or could not start. Nothing is
  known about the input. ``retry_once`` tries once more; then it is an EnvironmentProblem, exit code 4.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Literal, TypeVar

from . import child as protocol
from . import system_processes as system
from .errors import MORE_MEMORY, ChildDied, no_temporary_folder

PATIENCE = 600.0
"""Seconds of wall clock without a byte from a child after which it is given up: a child that does not move at
all. Whatever an input may take is limited by processor time, in the child."""
_LINE, _LOG_END = 300, 1 << 16
_OWN_CHECKS = (
    "GGML_ASSERT",
    "GGML_ABORT",
    "terminate called",
    "panicked at",
    "fatal runtime error",
    "fatal error",
)
_NO_MEMORY = (
    "bad_alloc",
    "memory allocation of",
    "Cannot allocate memory",
    "cannot allocate memory",
    "out of memory",
    "failed to allocate",
    "Failed to allocate",
    "Unable to allocate",
    "insufficient memory",
    "failed to map segment",
    "Resource temporarily unavailable",
    "can't start new thread",
    "Thread creation failed",
)
_OWN = {"GGML_NO_BACKTRACE": "1"}  # else ggml attaches a debugger to an abort (ggml.c)
_Result = TypeVar("_Result")


class ChildRefused(Exception):
    """A child ended itself over its input.

    ``code`` is its exit code, None where a signal ended it; ``limit`` is the limit of kconv's it ran into.
    ``words`` are the last lines of its log, fit to print.
    """

    def __init__(
        self, code: int | None, words: Sequence[str], limit: Literal["time", "memory"] | None = None
    ) -> None:
        super().__init__(f"code {code}, limit {limit}: {' / '.join(words[-2:])}")
        self.code, self.words, self.limit = code, tuple(words), limit


def retry_once(attempt: Callable[[], _Result]) -> _Result:
    """What ``attempt`` gives; where a child died, it is made once more. Raises the second ChildDied."""
    try:
        return attempt()
    except ChildDied:
        return attempt()


class Child:
    """A process that runs ``module`` of kconv (``kconv.vocab.llama_probe``); a context manager.

    ``library`` is what it is there for, as messages call it, ``hint`` what to do where that crashes,
    ``install`` how to get it. ``environment`` is the child's, by default ours. ``patience`` may be
    changed from request to request. Its answers are taken with ``fill`` and ``receive``; no size in memory
    comes from the child unchecked. Raises ChildDied where it cannot start.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        library: str,
        hint: str | None = None,
        install: str = "pip install kconv",
        environment: Mapping[str, str] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.closed, self.patience = False, patience
        self._library, self._hint, self._install = library, hint, install
        try:
            self._log: IO[bytes] = tempfile.TemporaryFile(prefix="kconv-log-")  # noqa: SIM115  (see close)
        except OSError as error:
            raise no_temporary_folder(error) from error
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", protocol.__file__, module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                env={**(os.environ if environment is None else environment), **_OWN, **_paths()},
            )
        except (OSError, ValueError) as error:
            self._log.close()
            raise self._died(f"cannot start: {getattr(error, 'strerror', None) or error}") from error
        self._requests: Any = self._process.stdin
        assert self._process.stdout is not None
        self.answers = system.answers_of(self._process.stdout)
        """What comes from it, for those who wait for several processes at once."""

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process at once; calling it again does nothing."""
        if not self.closed:
            self.closed = True
            self._process.kill()
            self._requests.close()
            self.answers.close()
            self._process.wait()
            self._log.close()

    def kill(self) -> None:
        """End the process only: what another thread waits for ends with it, and closing is left to that."""
        self._process.kill()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def send(self, request: bytes | bytearray | memoryview) -> None:
        """Raises ChildRefused or ChildDied where the process has ended."""
        view = memoryview(request).cast("B")
        try:
            while view:
                view = view[self._requests.write(view) :]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # the latter on Windows
                raise self._died(f"cannot be reached: {error.strerror or error}") from error
            raise self.ended() from None

    def receive(self, count: int) -> bytearray:
        """The next ``count`` bytes; whoever asks has bounded ``count``. Raises ChildRefused, ChildDied."""
        data = bytearray(count)
        self.fill(memoryview(data))
        return data

    def fill(self, target: Any) -> None:
        """The next bytes, as many as the buffer holds. Raises ChildRefused, ChildDied."""
        view = memoryview(target).cast("B")
        while view:
            if self.closed:
                raise self._died("was ended before it answered")
            if not self.answers.wait(self.patience):
                raise self._died(f"did not answer for {self.patience / 60:.0f} minutes")
            count = self.answers.read_into(view)
            if not count:
                raise self.ended()
            view = view[count:]

    def ended(self) -> ChildRefused | ChildDied:
        """What the end of the process means."""
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return self._died("stopped answering")
        number, words = system.ending_signal(code), self.words()
        return self._by_code(code, words) if number is None else self._by_signal(number, words)

    def words(self) -> list[str]:
        """Lines of the end of the log, fit for a terminal whatever a file made the library say."""
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - _LOG_END, 0))
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        printable = (" ".join("".join(c if c.isprintable() else " " for c in line).split()) for line in lines)
        return [line[:_LINE] for line in printable if line]

    def _by_code(self, code: int, words: list[str]) -> ChildRefused | ChildDied:
        words, own = _without_marker(words)
        if code == system.TIME_IS_UP:
            return ChildRefused(None, words, "time")
        if code == protocol.NOT_INSTALLED:
            hint = f"install it again: {self._install}"
            return self._died(f"does not work: {' / '.join(words[-1:])}", hint=hint)
        if code == protocol.OUT_OF_MEMORY or (code and _about(words, _NO_MEMORY)):
            return ChildRefused(code, words, "memory") if own else self._no_memory(words)
        if code in (0, 1, 127, protocol.BUG):  # 1: an exit() of some library's; 127: the dynamic loader's
            return self._died(f"ended with code {code}: {' / '.join(words[-2:]) or 'no output'}")
        return ChildRefused(code, words)

    def _by_signal(self, number: int, words: list[str]) -> ChildRefused | ChildDied:
        words, own = _without_marker(words)
        if system.is_out_of_time(number):
            return ChildRefused(None, words, "time")
        name = system.signal_name(number)
        if number == signal.SIGABRT:
            if _about(words, _NO_MEMORY):
                return ChildRefused(None, words, "memory") if own else self._no_memory(words)
            if _about(words, _OWN_CHECKS):
                return ChildRefused(None, words)
        if number == system.KILLED:
            hint = "close other programs or use a machine with more memory, then run it again"
            how = f"was killed (signal 9, {name}), most likely because memory ran out"
            return self._died(how, hint=hint, signal=number)
        detail = f": {' / '.join(words[-2:])}" if words else ""
        if number in system.CRASHES:
            return self._died(f"crashed (signal {number}, {name}){detail}", signal=number)
        return self._died(
            f"was ended by signal {number} ({name}){detail}", hint="run it again", signal=number
        )

    def _no_memory(self, words: Sequence[str]) -> ChildDied:
        reason = next((line for line in reversed(words) if _about([line], _NO_MEMORY)), "out of memory")
        return self._died(f"ran out of memory: {reason}", hint=MORE_MEMORY)

    def _died(self, how: str, *, hint: str | None = None, signal: int | None = None) -> ChildDied:
        return ChildDied(
            f"the process that runs {self._library} {how}; this says nothing about the input",
            hint=hint or self._hint or "run it again; kconv doctor shows whether this machine is at fault",
            signal=signal,
        )


def _without_marker(words: Sequence[str]) -> tuple[list[str], bool]:
    """The lines of a log without those that say whose limit of memory held, and whether it was ours."""
    markers = (protocol.MACHINES_MEMORY_LIMIT.decode(), protocol.OWN_MEMORY_LIMIT.decode())
    markers_seen = [line for line in words if line in markers]
    return [line for line in words if line not in markers], markers_seen[-1:] == [markers[1]]


def _about(words: Sequence[str], signs: Sequence[str]) -> bool:
    return any(sign in line for line in words for sign in signs)


def _paths() -> dict[str, str]:
    """Where the parent finds packages: a child looks at no variable of Python's, nor where it is started."""
    here = os.getcwd() if sys.path and sys.path[0] in ("", ".") else None
    paths = [path for path in sys.path if os.path.isabs(path) and path != here]
    return {protocol.PATH_VARIABLE: os.pathsep.join(paths)}
