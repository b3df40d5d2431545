"""The measured side: whatever runs a converted file, behind one small interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..core.windows import Window

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


class RuntimeFailure(Exception):
    """The runtime refused the file, or took more than kconv gives it; the message explains it."""


@dataclass(frozen=True)
class Block:
    """Logits ``(positions, vocabulary)`` in float32 of positions ``start`` and after of a window.

    ``window`` is the window's index. The array is only valid until the next block is asked for.
    """

    window: int
    start: int
    logits: Floats


class LogitsSource(Protocol):
    """What gives logits; methods raise RuntimeFailure, and ChildDied, which says nothing about the file."""

    def logits(self, windows: Sequence[Window]) -> Iterator[Block]:
        """Logits of all scored positions of all windows, in order, in blocks of some dozen megabytes.

        Positions before ``scored_from`` and the last one of a window are left out.
        """
        ...


class WindowReader(LogitsSource, Protocol):
    """A file loaded by its runtime, ready to be read with; a context manager.

    Every method raises RuntimeFailure and ChildDied; nothing the file holds can take this process down.
    """

    path: Path

    def __enter__(self) -> WindowReader: ...

    def __exit__(self, *failure: object) -> None: ...

    def layers(self, window: Window) -> list[Floats]:
        """What leaves each layer (the residual stream), each ``(len(window.ids), hidden)``, first to last.

        The layers of an encoder come first, each with a row for each position it reads: a token of the
        source, or what a front end makes of several.
        """
        ...
