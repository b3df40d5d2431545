"""Weight files on the Hub of which only what stands at their beginning is fetched: the header.

A safetensors file begins with the names, types, shapes and places of its tensors. The first 128 KiB hold that
of a thousand tensors; where they do not, what is missing is fetched once it is read. A few rows of a tensor
may be looked at besides. PyTorch's files are described in archives.py.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from ..core.byte_source import ByteSource, Identity, Opener
from ..core.errors import WeightsElsewhere
from .source import HubFile, HubSource
from .transfer import pieces

FIRST = 128 << 10
"""Bytes that are fetched at once, from where they are first needed."""
_AT_ONCE = 8  # files
_LOOKS = 8
"""Times that weights of a file are read, each at most ``FIRST`` bytes of them."""


def openers(source: HubSource, files: Sequence[HubFile]) -> dict[str, Opener]:
    """What opens each of the weight ``files``, by its path; the headers are fetched side by side.

    Raises what fetching raises.
    """
    opened = {file.path: _remote(source, file) for file in files}
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for _ in threads.map(lambda file: file.block_into(memoryview(bytearray(1)), 0), opened.values()):
            pass
    return {path: partial(_found, file) for path, file in opened.items()}


def _remote(source: HubSource, file: HubFile) -> RemoteFile:
    from .archives import RemoteArchive

    def fetch(start: int, stop: int) -> bytes:
        return b"".join(pieces(source, file, start, stop))

    name = f"{file.path} of {source.asked}"
    return (RemoteArchive if file.path.endswith(".bin") else RemoteFile)(name, file.size, fetch)


def _found(file: RemoteFile, path: Path) -> ByteSource:
    """The opener of a file that is open already, whatever its path."""
    return file


class RemoteFile:
    """A safetensors file elsewhere, of which blocks are fetched as they are read, and kept."""

    def __init__(self, name: str, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._name, self._size, self._fetch = name, size, fetch
        self._blocks: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._looks = 0

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
        """See ``ByteSource.read_into``. Raises WeightsElsewhere where more than a little would be read."""
        first = self._blocks.get(0, b"")
        if first and offset + len(view) > max(len(first), 8 + int.from_bytes(first[:8], "little")):
            self.spend(len(view))
        return self.block_into(view, offset)

    def spend(self, count: int) -> None:
        """Note that ``count`` bytes of weights are wanted. Raises WeightsElsewhere where it is too much."""
        self._looks += 1
        if count > FIRST or self._looks > _LOOKS:
            raise WeightsElsewhere(
                f"weights in {self._name} would have to be read, and only its header was fetched",
                hint="this needs the weights themselves: convert it, or fetch it first with `hf download`",
            )

    def block_into(self, view: memoryview, offset: int) -> int:
        """The bytes as they lie, from a block that is here or fetched now."""
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
