"""Telling a machine, or a limit, that has not enough of something from a bug: exit code 4, not 70.

Libraries say it in many ways: an import fails because a library does not fit, a thread cannot start, an
allocator of their own gives up.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..core.errors import MORE_MEMORY, EnvironmentProblem


@dataclass(frozen=True)
class Shortage:
    """What there is not enough of, and what to do about it."""

    message: str
    hint: str


_MEMORY = Shortage("out of memory", MORE_MEMORY)
_THREADS = Shortage(
    "no more threads or processes can be started",
    "close other programs, raise the limits (ulimit -u, ulimit -v), or use fewer with --threads",
)
_FILES = Shortage("too many files are open", "raise the limit (ulimit -n)")
_SPACE = Shortage("No space left on device", "free some space, or write to another disk with -o")
_SIZE = Shortage("a file would be larger than the limit allows", "raise the limit (ulimit -f)")

_BY_NUMBER = {
    errno.ENOMEM: _MEMORY,
    errno.EAGAIN: _THREADS,
    errno.EMFILE: _FILES,
    errno.ENFILE: _FILES,
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: _SIZE,
}
_BY_WORDS = (
    ("failed to map segment", _MEMORY),
    ("cannot allocate memory", _MEMORY),
    ("can't allocate memory", _MEMORY),
    ("cannot map zero-fill pages", _MEMORY),
    ("out of memory", _MEMORY),
    ("bad_alloc", _MEMORY),
    ("bad allocation", _MEMORY),
    ("failed to allocate", _MEMORY),
    ("memoryerror", _MEMORY),
    ("cannot create executable", _MEMORY),
    ("can't start new thread", _THREADS),
    ("thread creation failed", _THREADS),
    ("resource temporarily unavailable", _THREADS),
    ("too many open files", _FILES),
    ("no space left on device", _SPACE),
    ("file too large", _SIZE),
)


_LEAST = 160 << 20  # bytes that numpy and its OpenBLAS take as they are imported
_guards: list[object] = []
last_words: list[Callable[[], None]] = []  # said before a library ends the process; see guard_exit


def is_limited() -> bool:
    """Whether this process may have only so much memory (``ulimit -v``)."""
    from ..core.system_processes import address_space

    return address_space() is not None


def check_address_space() -> None:
    """Raise MemoryError where a limit leaves too little to begin with."""
    if is_limited():
        from ..core.system_files import private_memory

        try:
            private_memory(_LEAST).release()
        except (OSError, ValueError) as error:
            raise MemoryError from error


def guard_exit() -> None:
    """From now on nothing ends this process by the C library's exit() but with 4; see ``leave``.

    OpenBLAS, which numpy and scipy bring, exits with 1 where it gets no memory: the code of a failed proof.
    """
    import ctypes

    from ..core.system_processes import own_library

    def end(status: int, nothing: object) -> None:
        for words in last_words:
            with contextlib.suppress(Exception):  # there is hardly any memory left
                words()
        os.write(2, f"kconv: error: {_MEMORY.message}\n  what to do: {_MEMORY.hint}\n".encode())
        os._exit(EnvironmentProblem.exit_code)

    library = own_library()
    if hasattr(library, "on_exit"):  # glibc, musl has none
        _guards.append(ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p)(end))
        library.on_exit(_guards[-1], None)


def leave(code: int) -> int:
    """The exit code, but where the exit is guarded or torch was imported: there the process ends here.

    What is registered for its end is done as ever. What is left out is taking apart the modules, which with
    torch and transformers takes half a second and more in which the work is done and the prompt is not back.
    """
    if _guards or "torch" in sys.modules:
        if not _guards:  # where there is hardly any memory left, what is registered might not end
            atexit._run_exitfuncs()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def shortage(error: BaseException) -> Shortage | None:
    """What the machine lacked, if an exception, or one that caused it, is about such a shortage."""
    for each in _chain(error):
        if isinstance(each, MemoryError):
            return _MEMORY
        if isinstance(each, OSError) and each.errno in _BY_NUMBER:
            return _BY_NUMBER[each.errno]
        if isinstance(each, (ImportError, OSError, RuntimeError, SystemError)):
            text = str(each)[:10_000].lower()
            for words, kind in _BY_WORDS:
                if words in text:
                    return kind
            if isinstance(each, SystemError) and is_limited():  # C code that got no memory and did not say so
                return _MEMORY
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
