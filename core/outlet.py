"""Where the bytes of files go that are not to lie on a disk, or not only: what writers need to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class OutletFile:
    """A file of ``size`` bytes that is to be called ``path``.

    ``ranges`` (start, stop) are written, each byte once; what is between them is zero. ``temporary`` is the
    empty file that stands for it until it is whole.
    """

    path: Path
    temporary: Path
    size: int
    ranges: tuple[tuple[int, int], ...]


class Outlet(Protocol):
    """Takes files piece by piece, in any order and from any thread, each byte once."""

    @property
    def keeps(self) -> bool:
        """Whether the ``temporary`` files get the bytes, too."""
        ...

    def about(self, content: Mapping[str, Any], *, provisional: bool) -> None:
        """What decides every byte of the files, as plain JSON values, before ``begin``.

        ``provisional`` says that what is read turns out to be right only when all has been read.
        """
        ...

    def begin(self, files: Sequence[OutletFile]) -> None:
        """Be ready for these files, which ``write`` calls by their place in the list."""
        ...

    def has(self, file: int, offset: int, count: int) -> bool:
        """Whether so many bytes of a file are where they go already, and need not come."""
        ...

    def write(self, file: int, data: memoryview, offset: int, /) -> None:
        """Take bytes of a file. Raises whatever has gone wrong with earlier ones."""
        ...
