"""Weight files on the Hub of which only what stands at their beginning is fetched: the header.

A safetensors file begins with the names, types, shapes and places of its tensors. The first 128 KiB hold that
of a thousand tensors; where they do not, what is missing is fetched once it is read. A few rows of a tensor
may be looked at besides. PyTorch's files are described in archives.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from ..core.byte_source import ByteSource, Identity, Opener
from ..core.errors import DamagedOnTheWay, WeightsElsewhere
from ..core.safetensors_file import HEADER_LIMIT
from .source import HubFile, HubSource
from .transfer import pieces

FIRST = 128 << 10
"""Bytes that are fetched at once, from where they are first needed."""
_AT_ONCE = 8  # files
_LOOKS = 8
"""Times that weights of a file are read, each at most ``FIRST`` bytes of them."""


def openers(source: HubSource, files: Sequence[HubFile]) -> dict[str, Opener]:
    """What opens each of the weight ``files``, by its path; the headers are fetched side by side.

    Raises what fetching raises, and DamagedOnTheWay.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        opened = list(threads.map(partial(_with_header, source), files))
    return {file.path: partial(_found, each) for file, each in zip(files, opened, strict=True)}


def _with_header(source: HubSource, file: HubFile) -> RemoteFile:
    def begun() -> RemoteFile:
        opened = _remote(source, file)
        opened.block_into(memoryview(bytearray(1)), 0)
        return opened

    return with_sound_header(f"{file.path} of {source.asked}", begun)


Opened = TypeVar("Opened", bound=ByteSource)


def with_sound_header(name: str, begin: Callable[[], Opened]) -> Opened:
    """What ``begin`` opens, if it is no safetensors file whose header came damaged; that is fetched again.

    A part of a file has no sum: where the header makes no sense, either it was damaged on the way or the file
    is. Raises DamagedOnTheWay where that is so twice, and what fetching raises.
    """
    for _ in range(2):
        opened = begin()
        if not name.partition(" ")[0].endswith(".safetensors") or _makes_sense(opened):
            return opened
    raise DamagedOnTheWay(
        f"the header of {name} came damaged, twice: something on the way changes it, or the file is damaged",
        hint="run it again; a conversion without --stream downloads the file and holds it to its SHA-256",
    )


def _makes_sense(file: ByteSource) -> bool:
    """Whether a safetensors file begins with a length and JSON of that length."""
    length = int.from_bytes(_first(file, 0, 8), "little")
    if not 0 < length <= min(HEADER_LIMIT, file.size - 8):
        return False
    try:
        json.loads(_first(file, 8, length))
    except (ValueError, RecursionError):
        return False
    return True


def _first(file: ByteSource, start: int, count: int) -> bytes:
    data = memoryview(bytearray(min(count, max(0, file.size - start))))
    done = 0
    while done < len(data):
        done += file.read_into(data[done:], start + done) or len(data)
    return bytes(data)


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
