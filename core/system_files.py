"""Files as each operating system has them: how they are opened, read at an offset, locked, synced, renamed.

No other place asks which system this is for any of that. Linux and macOS have all of it in ``os`` and
``fcntl``. Windows has no positioned reads and writes (they become seek and read under a lock of that file)
and no descriptors of folders (a lock on one is a lock on a file beside it), and it does not rename what
somebody reads (it is tried again for a moment). Each of these ways can be chosen on any system by the
constants below, which is how tests try them. docs/en/systems.md says what was tried where.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import mmap
import os
import platform
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform == "win32":
    from . import win32

POSITIONED = hasattr(os, "pread") and hasattr(os, "pwrite")
"""Whether descriptors are read and written at an offset in one call."""
FOLDERS_OPEN = hasattr(os, "O_DIRECTORY")
"""Whether folders have descriptors, which can be locked and synced."""
RENAMES_OPEN = sys.platform != "win32"
"""Whether what somebody has open can be renamed."""

_READ = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_WRITE = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAITING = getattr(os, "O_NONBLOCK", 0)  # opening a named pipe would wait for its other end for ever
_PATIENCE = 2.0  # seconds in which a virus scanner or indexer lets go of a new file on Windows
_seeking = tuple(threading.Lock() for _ in range(64))
_beside: dict[int, Path] = {}


def open_to_read(path: Path, *, follow: bool = True) -> int:
    """A descriptor to read ``path`` with, at once whatever it is; ``follow`` takes links. Raises OSError."""
    if not follow:
        _refuse_link(path)
    flags = _READ | _NO_WAITING | (0 if follow else _NO_LINK)
    if sys.platform == "win32":
        return win32.open_shared(path, flags)
    return os.open(path, flags)


def open_to_write(
    path: Path,
    *,
    new: bool = False,
    make: bool = False,
    append: bool = False,
    follow: bool = True,
    mode: int = 0o666,
) -> int:
    """A descriptor to read and write ``path`` with. Raises OSError.

    ``new``: it must not be there yet. ``make``: it is made where it is not. ``append``: whatever is written
    goes to its end. ``follow`` takes links.
    """
    if not follow:
        _refuse_link(path)
    flags = _WRITE | (0 if follow else _NO_LINK | _NO_WAITING) | (os.O_APPEND if append else 0)
    flags |= os.O_CREAT | os.O_EXCL if new else os.O_CREAT if make else 0
    if sys.platform == "win32":
        return win32.open_shared(path, flags, mode)
    return os.open(path, flags, mode)


def _refuse_link(path: Path) -> None:
    """Where the system has no flag for it: what is at ``path`` now must not be a link."""
    if not _NO_LINK and os.path.islink(path):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def read_at(handle: int, view: memoryview, offset: int) -> int:
    """Fill ``view`` from ``offset`` of an open file; how many bytes came. Safe from several threads."""
    if hasattr(os, "preadv"):
        count: int = os.preadv(handle, [view], offset)
        return count
    data = bytes_at(handle, view.nbytes, offset)
    view.cast("B")[: len(data)] = data
    return len(data)


def bytes_at(handle: int, size: int, offset: int) -> bytes:
    """At most ``size`` bytes from ``offset`` of an open file. Safe from several threads."""
    if POSITIONED and sys.platform != "win32":
        return os.pread(handle, size, offset)
    with _seeking[handle % len(_seeking)]:
        os.lseek(handle, offset, os.SEEK_SET)
        return os.read(handle, size)


def write_at(handle: int, data: memoryview | bytes, offset: int) -> None:
    """All of ``data`` to ``offset`` of an open file. Safe from several threads."""
    view = memoryview(data).cast("B")
    while view:
        if POSITIONED and sys.platform != "win32":
            written = os.pwrite(handle, view, offset)
        else:
            with _seeking[handle % len(_seeking)]:
                os.lseek(handle, offset, os.SEEK_SET)
                written = os.write(handle, view)
        view, offset = view[written:], offset + written


def begin_to_sync(handle: int, size: int, offset: int) -> None:
    """Let the disk begin with what was just written, so that a sync at the end finds less to wait for.

    Says nothing about whether it arrives: only a sync does. Linux alone has such a call (sync_file_range).
    """
    begin = _sync_file_range()
    if begin is not None:
        begin(handle, offset, size, _WRITE_OUT)


_WRITE_OUT = 2  # fcntl.h, SYNC_FILE_RANGE_WRITE


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    function = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    begin: Callable[[int, int, int, int], int] = function
    return begin


def append(handle: int, data: bytes) -> None:
    """All of ``data`` to a file opened with ``append``, and on the disk."""
    view = memoryview(data)
    with _seeking[handle % len(_seeking)]:
        while view:
            view = view[os.write(handle, view) :]
    sync(handle)


def sync(handle: int) -> None:
    """Have what was written to an open file on the disk before going on. Raises OSError."""
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):  # a disk elsewhere
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)  # its fsync stops at the disk's own memory
            return
    os.fsync(handle)


def synced(path: Path) -> None:
    """Have a file's bytes, or a folder's names, on the disk before going on. Raises OSError."""
    if not FOLDERS_OPEN and path.is_dir():
        return  # NTFS has names in its log
    handle = os.open(path, _READ if FOLDERS_OPEN else _WRITE)  # Windows syncs what it may write
    try:
        sync(handle)
    finally:
        os.close(handle)


def open_folder(path: Path) -> int:
    """A descriptor to lock the folder ``path`` with; ``release`` closes it. Raises OSError."""
    if FOLDERS_OPEN and sys.platform != "win32":
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK | _NO_WAITING)
    if not stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    beside = path.with_name(f"{path.name}.lock")
    handle = os.open(beside, _WRITE | os.O_CREAT, 0o666)
    _beside[handle] = path
    return handle


def release(handle: int) -> None:
    """Close a descriptor and let go of its lock."""
    folder = _beside.pop(handle, None)
    os.close(handle)
    if folder is not None:
        with contextlib.suppress(OSError):  # somebody waits for it
            folder.with_name(f"{folder.name}.lock").unlink()


def is_same(handle: int, path: Path) -> bool:
    """Whether ``path`` still names what ``handle`` has open, or locks."""
    if handle in _beside:
        return path == _beside[handle] and path.is_dir()
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


def status_of(handle: int) -> os.stat_result:
    """That of the file, or the folder, that ``handle`` has open or locks. Raises OSError."""
    return os.stat(_beside[handle], follow_symlinks=False) if handle in _beside else os.fstat(handle)


def lock(handle: int, *, wait: bool = False) -> None:
    """Lock an open file or folder for this process until it is closed, however that comes.

    Raises BlockingIOError where another has it and ``wait`` is false, another OSError without locks.
    """
    if sys.platform == "win32":
        win32.lock(handle, wait=wait)
        return
    import fcntl

    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def rename(old: Path, new: Path) -> None:
    """Rename a file or folder to a name that is free, or that a file has which goes. Raises OSError."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            os.replace(old, new)
            return
        except PermissionError:
            if RENAMES_OPEN or time.monotonic() > end:
                raise
        time.sleep(0.05)


def is_own(status: os.stat_result) -> bool:
    """Whether a file is this user's; Windows does not tell, where the user's folders are nobody else's."""
    return sys.platform == "win32" or status.st_uid == os.geteuid()


def user_mark() -> str:
    """What tells this user from others, for a name in a folder that all share."""
    if sys.platform == "win32":
        return os.environ.get("USERNAME", "user")
    return str(os.getuid())


def bytes_on_disk(status: os.stat_result) -> int:
    """What a file takes on the disk, holes left out where the system tells."""
    if sys.platform == "win32":
        return status.st_size
    return status.st_blocks * 512


def kernel_run() -> bytes:
    """What tells this run of the system from others; empty where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:  # not Linux
        return b""


def machine_name() -> str:
    """The machine's name in its network."""
    return platform.node()


def file_system(handle: int) -> str | None:
    """The type of the file system an open file lies on, as Linux calls it; None where nobody tells.

    Raises OSError where it is not Linux.
    """
    fields = Path(f"/proc/self/fdinfo/{handle}").read_text("ascii").split()
    mount = fields[fields.index("mnt_id:") + 1]
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        words = line.split(" ")
        if words[0] == mount:
            return words[words.index("-") + 1]
    return None


def private_memory(size: int) -> memoryview:
    """Memory that is given back to the system with the last reference, which malloc does not promise."""
    if sys.platform == "win32":
        return memoryview(mmap.mmap(-1, size))
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def memory_of_a_file(handle: int, size: int) -> memoryview:
    """The first ``size`` bytes of a file as memory to write to; kept until the last reference goes."""
    return memoryview(mmap.mmap(handle, size))


@contextlib.contextmanager
def file_of(data: bytes, name: str, end: str) -> Iterator[str]:
    """The path of a file with these bytes, in memory where the system has that. Raises OSError."""
    if hasattr(os, "memfd_create"):
        handle = os.memfd_create(name)
        try:
            with open(handle, "wb", closefd=False) as file:
                file.write(data)
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
        return
    handle, path = tempfile.mkstemp(prefix=f"{name}-", suffix=end)
    try:
        with open(handle, "wb") as file:  # closed before others open it, which Windows insists on
            file.write(data)
        yield path
    finally:
        os.unlink(path)
