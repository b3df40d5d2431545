"""Files of one proof in llama.cpp before their turn: each is read while what was read before is judged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..core.machine import memory
from ..core.windows import Window
from ..runtimes.early_reader import Asked, EarlyReader
from .inputs import Expected, VerifyOptions
from .logits import groups
from .recomputed import bytes_of_a_position, first_positions

_ROOM = 512 << 20  # bytes
_SHARE = 8  # of the memory that is free


@contextlib.contextmanager
def early_readers(
    expected: Expected,
    files: Sequence[Path],
    windows: Sequence[Window],
    options: VerifyOptions,
    positions: int | None,
) -> Iterator[Sequence[EarlyReader | None]]:
    """A reader for each of ``files``, the first of which begins now; ended at the end of the block.

    The next begins once one has nothing left to read. None where answers are not asked for like that, or
    would not fit in memory: an encoder's, those of a front end, of long texts, of other machines.
    """
    asked = _asked(expected, windows, options, positions)
    room, bytes_of_one = room_for_logits(), 0 if asked is None else _bytes(expected, asked)
    if asked is None or bytes_of_one > room:
        yield [None] * len(files)
        return
    queue = _Queue(2 if 2 * bytes_of_one <= room else 1)
    readers = [
        EarlyReader(path, asked, threads=options.threads, read=queue.next, closed=queue.next)
        for path in files
    ]
    queue.readers = readers
    try:
        queue.next()
        yield readers
    finally:
        queue.readers = []
        for reader in readers:
            reader.close()


class _Queue:
    """Begins one reader after the other; only so many at once are begun and not yet closed."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.readers: Sequence[EarlyReader] = []

    def next(self) -> None:
        """Begin the first that is not begun, where that may be."""
        readers = self.readers
        if any(reader.reading_early for reader in readers):
            return
        waiting = [reader for reader in readers if not reader.begun]
        held = sum(reader.begun and not reader.left for reader in readers)
        if waiting and held < self._most:
            waiting[0].begin()


def _asked(
    expected: Expected, windows: Sequence[Window], options: VerifyOptions, positions: int | None
) -> Asked | None:
    family = expected.family
    if family.encoder_only or family.front_end is not None or options.measure is not None:
        return None
    together = [group for _, group in groups(windows)]
    if positions is None or len(together) != 1:
        return None
    shapes = [tensor.shape for tensor in expected.model.tensors]
    return Asked(first_positions(shapes, windows[0], positions), together[0])


def _bytes(expected: Expected, asked: Asked) -> int:
    rows = len(asked.inputs_of.ids) + sum(len(window.scored) for window in asked.windows)
    shapes = [tensor.shape for tensor in expected.model.tensors]
    inputs = len(asked.inputs_of.ids) * bytes_of_a_position(shapes)
    return 4 * rows * len(expected.vocab.tokens) + inputs


def room_for_logits() -> int:
    """Bytes for what is kept of one side until the other has come."""
    here = memory()
    free = [size for size in (here.available, here.container) if size is not None]
    return min([_ROOM, *(size // _SHARE for size in free)])
