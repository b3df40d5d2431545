"""Checkpoints whose weights lie on another machine: what readers of folders need to know of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from .byte_source import Opener

Part = TypeVar("Part")


class Stream(Protocol):
    """Weights that arrive in the order in which they lie in their files, to be used meanwhile."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        ...

    def arranged(self, parts: Sequence[Part], read: Callable[[Part], object]) -> list[Part]:
        """``parts`` of some work in the order in which what they read arrives; begins to fetch it.

        ``read`` reads what a part needs of the weights and nothing else; what it gets here is arbitrary.
        """
        ...

    def working_on(self, part: Part) -> AbstractContextManager[None]:
        """While this thread does that part, it reads what has arrived, or waits for it."""
        ...

    def abort(self) -> None:
        """Fetch no more; whoever waits for something raises."""
        ...

    def arrivals(self) -> Mapping[str, Any]:
        """What has arrived since this was last asked, as plain JSON values by which it is recognized."""
        ...

    def restore(self, arrivals: Sequence[Mapping[str, Any]]) -> None:
        """Hold what arrives from now on to what arrived in an earlier run, as that was told of it.

        To be called before anything is fetched. Raises ValueError, LookupError and TypeError for what this
        never gave away.
        """
        ...


@dataclass(frozen=True)
class Elsewhere:
    """A checkpoint in two places: small files in ``folder``, the files of weights wherever they lie.

    ``weights`` opens each of those by its name, which is not to be found in the folder. With a ``stream``
    all of them can be read in order while they arrive.
    """

    folder: Path
    weights: Mapping[str, Opener] = field(default_factory=dict)
    stream: Stream | None = None

    def __str__(self) -> str:
        return str(self.folder)
