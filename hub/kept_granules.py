"""Granules of files elsewhere that were fetched last: what is read next may lie in them, too."""

from __future__ import annotations

import threading
from collections import OrderedDict

_KEPT = 32


class Kept:
    """Granules that were fetched last, by file and number."""

    def __init__(self) -> None:
        self._granules: OrderedDict[tuple[object, int], memoryview] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, file: object, granule: int) -> memoryview | None:
        """That granule, if it is still there."""
        with self._lock:
            if (file, granule) in self._granules:
                self._granules.move_to_end((file, granule))
            return self._granules.get((file, granule))

    def take_over(self, other: Kept) -> None:
        """What another one has."""
        with self._lock:
            self._granules.update(other._granules)

    def keep(self, file: object, granule: int, data: memoryview) -> None:
        """A copy of it, in place of the one that was not wanted for longest."""
        with self._lock:
            self._granules[file, granule] = memoryview(bytes(data))
            while len(self._granules) > _KEPT:
                self._granules.popitem(last=False)
