"""Temporary files and folders that show, by a lock, whether a process is still working on them.

Whoever makes one holds a lock on it (flock) until it is gone or has its final name. The system lets go of the
lock however the process ends, so a file nobody holds is what a killed run has left (``core/leftovers.py``).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from . import system_files as system
from .system_files import is_same, release

_HELD_NAME = 200  # bytes of a name; names have at most 255, Hangul takes three each
NAMES = re.compile(
    r"(?:\.(?P<of>.+)\.kconv|\.?kconv-[a-z]+)-(?P<mark>[0-9a-f]{16})\.(?P<end>partial|old|journal)", re.DOTALL
)
"""What temporary files and folders of kconv's are called; ``of`` is the name they are to have, and those
that are to take their names together have one ``mark``. A journal is a folder (core/kept.py)."""


@functools.cache
def _here() -> tuple[str, str]:
    """Four digits of this run of the system's kernel, and four of the machine's name."""
    names = (system.kernel_run(), os.fsencode(system.machine_name()))
    kernel, node = (zlib.crc32(each) & 0xFFFF for each in names)
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
        try:
            handle = (
                system.open_folder(path) if folder else system.open_to_write(path, new=True, follow=False)
            )
        except FileNotFoundError:
            if folder and path.parent.is_dir():  # taken away already, see below
                continue
            raise
        try:
            system.lock(handle, wait=True)
        except OSError:
            return handle
        except BaseException:  # Ctrl-C
            release(handle)
            raise
        if is_same(handle, path):
            return handle
        release(handle)  # somebody who clears up came between making and locking, and took it away


def reclaim(path: Path) -> int:
    """Take over what another run, which is gone, had claimed; the rest is as of ``claim``.

    Raises BlockingIOError where that run is still at work, FileNotFoundError where it has just finished.
    """
    handle = system.open_folder(path) if path.is_dir() else system.open_to_write(path, follow=False)
    try:
        system.lock(handle)
    except BlockingIOError:
        release(handle)
        raise
    except OSError:  # a file system without locks
        return handle
    if is_same(handle, path):
        return handle
    release(handle)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


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
            release(handle)


@contextlib.contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold a lock on an existing folder, if possible, so that no other run takes it for a leftover."""
    try:
        handle = system.open_folder(path.resolve())
    except OSError:
        yield
        return
    try:
        with contextlib.suppress(OSError):
            system.lock(handle)
        yield
    finally:
        release(handle)
