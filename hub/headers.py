"""Weight files on the Hub of which only what stands at their beginning is fetched: the header.

A safetensors file begins with the names, types, shapes and places of its tensors. The first 128 KiB
hold that of a thousand tensors; where it does not, what is missing is fetched once it is read.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ..core.byte_source import Identity, Opener
from .cache import snapshot
from .source import HubFile, HubSource
from .transfer import pieces

FIRST = 128 << 10
"""Bytes that are fetched at once, from where they are first needed."""


class HeaderReader:
    """Opens the weight files of a source."""

    def __init__(self, source: HubSource) -> None:
        self._source = source

    def is_here(self, file: HubFile) -> bool:
        """Whether the file is in the cache, in its length."""
        try:
            return (
                snapshot(self._source.repository, self._source.commit) / file.path
            ).stat().st_size == file.size
        except OSError:
            return False

    def opener(self, file: HubFile) -> Opener:
        """What opens it, whatever path is asked for."""
        source = RemoteFile(file.size, lambda start, stop: b"".join(pieces(self._source, file, start, stop)))
        return lambda path: source


class RemoteFile:
    """A file elsewhere, of which blocks are fetched as they are read, and kept."""

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size, self._fetch = size, fetch
        self._blocks: dict[int, bytes] = {}
        self._lock = threading.Lock()

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    @property
    def identity(self) -> Identity:
        """A commit does not change."""
        return 0, 0, self._size, 0

    def identity_now(self) -> Identity:
        """The same."""
        return self.identity

    def read_into(self, view: memoryview, offset: int) -> int:
        """See ``ByteSource.read_into``."""
        if not len(view) or offset >= self._size:
            return 0
        with self._lock:
            begin = max((each for each in self._blocks if each <= offset), default=None)
            if begin is None or offset >= begin + len(self._blocks[begin]):
                begin = offset
                stop = min(self._size, offset + max(FIRST, len(view)))
                self._blocks[begin] = self._fetch(begin, stop)
            got = self._blocks[begin][offset - begin :][: len(view)]
        view[: len(got)] = got
        return len(got)
