"""Codes that have been chosen once, in files: a choice of formats is measured with them before it is written.

Choosing codes is most of the work of a conversion with --optimize, so it is done once. The files take as much
room as what is going to be written; where there is not that much to spare, codes are chosen again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..core import system_files
from .ggml import Bytes

Key = tuple[str, str, float]
"""A tensor's name, a format's, and the strength by which the codes of its matrix were chosen."""


@dataclass
class _File:
    """Where the rows of a tensor lie, one after the other, and which of them are there.

    It is opened for each slab: a model has more matrices than a process may have files open.
    """

    path: Path
    there: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def has(self, start: int, stop: int) -> bool:
        """Whether all of these rows are there."""
        return stop <= len(self.there) and bool(self.there[start:stop].all())

    def mark(self, start: int, stop: int) -> None:
        """These rows are there from now on."""
        if stop > len(self.there):
            self.there = np.concatenate([self.there, np.zeros(stop - len(self.there), np.bool_)])
        self.there[start:stop] = True


class KeptCodes:
    """Encoded rows by tensor, format and strength, in files in ``folder``, which is this object's own.

    Safe from several threads. ``close`` removes all.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[Key, _File] = {}
        self._keeps = True
        self._emptied()

    def take(self, key: Key, start: int, rows: int, data: Bytes) -> bool:
        """Fill ``data`` with these rows, if they are there."""
        with self._lock:
            file = self._files.get(key)
            if file is None or not file.has(start, start + rows):
                return False
        found = np.empty_like(data)
        with contextlib.suppress(OSError):
            place = start * (data.nbytes // rows)
            with _opened(file.path) as handle:
                count = system_files.read_at(handle, found.data, place)
            if count == data.nbytes:
                data[:] = found
                return True
        return False

    def keep(self, key: Key, start: int, rows: int, data: Bytes) -> None:
        """Keep these rows, as long as there is room."""
        if not self._keeps or not rows:
            return
        try:
            with self._lock:
                file = self._files.get(key) or self._begun(key)
            with _opened(file.path) as handle:
                system_files.write_at(handle, data.data, start * (data.nbytes // rows))
        except OSError:  # no room: all is chosen again, and whoever needs the room has it
            self.close()
            return
        with self._lock:
            file.mark(start, start + rows)

    def _begun(self, key: Key) -> _File:
        self._folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(repr(key).encode()).hexdigest()[:32]
        file = self._files[key] = _File(self._folder / name)
        return file

    def close(self) -> None:
        """Remove what is kept."""
        with self._lock:
            self._keeps = False
            self._files.clear()
        self._emptied()

    def _emptied(self) -> None:
        """Nothing of it is left, nor of a run that was killed."""
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = system_files.open_to_write(path, make=True)
    try:
        yield handle
    finally:
        system_files.release(handle)
