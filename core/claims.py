"""Temporary files and folders that show, by a lock, whether a process is still working on them.

Whoever makes one holds a lock on it (flock) until it is gone or has its final name. The system lets go of the
lock however the process ends, so a file nobody holds is what a killed run has left (``core/leftovers.py``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

_HELD_NAME = 200  # bytes of a name; names have at most 255, Hangul takes three each
NAMES = re.compile(
    r"(?:\.(?P<of>.+)\.kconv|\.?kconv-[a-z]+)-(?P<mark>[0-9a-f]{16})\.(?P<end>partial|old|journal)", re.DOTALL
)
"""What temporary files and folders of kconv's are called; ``of`` is the name they are to have, and those
that are to take their names together have one ``mark``. A journal is a folder (core/kept.py)."""


@functools.cache
def _here() -> tuple[str, str]:
    """Four digits of this run of the system's kernel, and four of the machine's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # not Linux
        boot = b""
    kernel, node = (zlib.crc32(each) & 0xFFFF for each in (boot, os.fsencode(os.uname().nodename)))
    return f"{kernel:04x}", f"{node:04x}"


def new_mark() -> str:
    """A unique mark for names of temporary files; it also identifies this machine."""
    return "".join(_here()) + os.urandom(4).hex()


def is_of_this_machine(mark: str) -> bool:
    """Whether its lock can be relied on; machines that share a disk may not see each other's locks."""
    boot, node = _here()
    return mark[:4] == boot or mark[4:8] == node


def temporary_beside(path: Path, end: str = "partial", *, mark: str | None = None) -> Path:
    """An unused name in the folder of ``path``, for the file that will be renamed to it."""
    start = os.fsdecode(os.fsencode(path.name)[:_HELD_NAME])
    if mark is None or is_shortened(path.name):  # two shortened names may be the same
        mark = new_mark()
    return path.with_name(f".{start}.kconv-{mark}.{end}")


def is_shortened(name: str) -> bool:
    """Whether ``temporary_beside`` may have shortened it."""
    return len(os.fsencode(name)) >= _HELD_NAME


def claim(path: Path, *, folder: bool = False) -> int:
    """Make ``path``, a file or a folder, with a lock on it; returns the descriptor that holds the lock.

    Where the file system has no locks there is none. Raises OSError.
    """
    while True:
        if folder:
            path.mkdir()
        flags = os.O_RDONLY | os.O_DIRECTORY if folder else os.O_RDWR | os.O_CREAT | os.O_EXCL
        try:
            handle = os.open(path, flags | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            if folder and path.parent.is_dir():  # taken away already, see below
                continue
            raise
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            return handle
        except BaseException:  # Ctrl-C
            os.close(handle)
            raise
        if is_same(handle, path):
            return handle
        os.close(handle)  # somebody who clears up came between making and locking, and took it away


def reclaim(path: Path) -> int:
    """Take over what another run, which is gone, had claimed; the rest is as of ``claim``.

    Raises BlockingIOError where that run is still at work, FileNotFoundError where it has just finished.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY if path.is_dir() else os.O_RDWR
    handle = os.open(path, flags | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise
    except OSError:  # a file system without locks
        return handle
    if is_same(handle, path):
        return handle
    os.close(handle)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def is_same(handle: int, path: Path) -> bool:
    """Whether ``path`` still names what ``handle`` has open."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


@contextlib.contextmanager
def claimed_folder(path: Path, keep: Callable[[BaseException], bool] = lambda error: False) -> Iterator[None]:
    """Make the folder ``path`` and remove it, with all that is in it, in the end. Raises OSError.

    One that is there already is taken over; ``keep`` is asked whether it stays after a failure.
    """
    handle, stay, there = None, False, path.is_dir()
    try:
        handle = reclaim(path) if there else claim(path, folder=True)
        yield
    except BaseException as error:
        stay = there if handle is None else keep(error)  # it may be another's
        raise
    finally:
        if not stay:
            shutil.rmtree(path, ignore_errors=True)
        if handle is not None:
            os.close(handle)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold a lock on an existing folder, if possible, so that no other run takes it for a leftover."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
