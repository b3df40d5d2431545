"""Where the bytes of weights come from: an interface, and the source there is today, a file of this machine.

Readers of containers (``core/input_files.py`` for checkpoints, ``core/gguf_file.py`` and
``quant/gguf_weights.py`` for GGUF) ask a ``ByteSource`` and know no more of it; each takes an ``Opener``, so
that ranges of a file elsewhere can be another one. What a failure means is for the readers to say.
"""

from __future__ import annotations

import os
import stat
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from .errors import EnvironmentProblem
from .progress import Progress
from .system_files import open_to_read, read_at

Identity = tuple[int, int, int, int]
"""Which file it is, and as of when: device, inode, bytes, time of change in ns."""


def identity_of(status: os.stat_result) -> Identity:
    """What distinguishes a file from others, and from itself after a change."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class ByteSource(Protocol):
    """Bytes to be read at any offset, from any thread, until the last reference to the source is gone.

    A source that is pickled is opened anew where it is unpickled: there it gives the same bytes, or
    unpickling raises EnvironmentProblem.
    """

    @property
    def size(self) -> int:
        """How many bytes there were when it was opened."""
        ...

    @property
    def identity(self) -> Identity:
        """Which bytes they were when it was opened."""
        ...

    def identity_now(self) -> Identity:
        """Which bytes they are now: anything but ``identity`` means that somebody has changed them."""
        ...

    def read_into(self, view: memoryview, offset: int) -> int:
        """Write bytes from ``offset`` on to the start of ``view``, and return how many; 0 only at the end.

        Raises OSError.
        """
        ...


@runtime_checkable
class SummedSource(ByteSource, Protocol):
    """A source that is fetched as a whole while it is read, and summed up on the way."""

    def sha256(self, progress: Progress, stopped: Callable[[], bool]) -> str:
        """The SHA-256 of all of it in hexadecimal; waits until all of it has come.

        Calls ``progress("hash", bytes done, bytes in all)``. Raises what fetching raises, and
        InterruptedError once ``stopped`` says yes.
        """
        ...


Opener = Callable[[Path], ByteSource]
"""Opens a path. Raises OSError, and NotAFile for what has no bytes of its own."""


class NotAFile(Exception):
    """What was to be opened is a folder, a device, a pipe; ``kind`` says it in words."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class LocalFile:
    """A regular file, open for reading; its descriptor is closed with the last reference.

    The file is never mapped: a map of a file that shrinks kills the process, a short read is an error.
    Descriptors mean nothing in another process, so a pickle holds absolute path, size and time of change.
    """

    def __init__(self, path: Path) -> None:
        self._handle = open_to_read(path)
        weakref.finalize(self, os.close, self._handle)
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            raise NotAFile("a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file")
        self.path = os.path.abspath(path)  # now: the working folder may be another one later
        self.identity = identity_of(status)

    @property
    def size(self) -> int:
        """In bytes."""
        return self.identity[2]

    def fileno(self) -> int:
        """The descriptor of the open file, which stays this object's."""
        return self._handle

    def identity_now(self) -> Identity:
        """That of the open file, wherever it lies by now."""
        return identity_of(os.fstat(self._handle))

    def read_into(self, view: memoryview, offset: int) -> int:
        """See ``ByteSource.read_into``."""
        return read_at(self._handle, view, offset)

    def is_at_its_path(self) -> bool:
        """Whether whoever opens the path gets this very file, as it was when it was opened."""
        try:
            return identity_of(os.stat(self.path)) == self.identity
        except OSError:
            return False

    def __reduce__(self) -> tuple[Any, ...]:
        if not self.is_at_its_path():
            raise EnvironmentProblem(
                f"{self.path} was changed, moved or removed since it was opened, so it cannot be sent to "
                "another process",
                hint="open it again, and do not change the input meanwhile",
            )
        return _reopened, (self.path, *self.identity[2:])


_ARRIVED: weakref.WeakValueDictionary[tuple[str, int, int], LocalFile] = weakref.WeakValueDictionary()
_LOCK = threading.Lock()


def _reopened(path: str, size: int, changed: int) -> LocalFile:
    """The file a pickle speaks of; one descriptor serves all tensors that arrive one by one.

    Raises EnvironmentProblem where there is none, or another: by its size and time of change, since another
    machine numbers devices and inodes otherwise.
    """
    with _LOCK:
        known = _ARRIVED.get((path, size, changed))
        if known is not None and known.is_at_its_path():
            return known
        try:
            file = LocalFile(Path(path))
        except (OSError, NotAFile) as error:
            why = error.strerror if isinstance(error, OSError) else f"it is {error}"
            raise EnvironmentProblem(
                f"{path} was open in the process that pickled this, but cannot be opened here: {why}",
                hint="make the checkpoint available under the same path in every process",
            ) from error
        if file.identity[2:] != (size, changed):
            raise EnvironmentProblem(
                f"{path} is not the same file as in the process that pickled this: it has {file.size} "
                f"bytes and was modified at {file.identity[3]} ns, expected {size} bytes and "
                f"{changed} ns",
                hint="open the checkpoint again, and do not change it meanwhile",
            )
        _ARRIVED[path, size, changed] = file
        return file
