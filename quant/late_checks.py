"""Kernels that are held against libggml beside the work, not before it.

libggml makes tables for the formats on grids that take it one to twelve seconds in every process. Meanwhile
the kernels encode, and whoever writes asks before anything is called finished: what was encoded by a kernel
that turns out to differ has to be encoded again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Key = tuple[str, str, bool]
"""Instruction set, format, whether with importance."""


class LateChecks:
    """Comparisons one after the other in a thread of their own; ``judged`` is told how each came out.

    What is told with ``tell`` is passed on as soon as no comparison is left that could take it back.
    """

    def __init__(self, judged: Callable[[Key, int, bool], None]) -> None:
        self._judged = judged
        self._asked: dict[Key, int] = {}
        self._left = 0
        self._wrong: set[Key] = set()
        self._failure: BaseException | None = None
        self._held: list[tuple[int, Callable[[], None]]] = []
        self._jobs: queue.SimpleQueue[tuple[Key, int, Callable[[], bool]]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def asked(self, key: Key) -> int:
        """How many blocks of a kernel are compared, or will be."""
        return self._asked.get(key, 0)

    def ask(self, key: Key, blocks: int, agree: Callable[[], bool]) -> None:
        """Compare so many blocks when their turn comes."""
        with self._changed:
            self._asked[key] = self.asked(key) + blocks
            self._left += 1
            if self._thread is None:  # a daemon: libggml's tables are not worth waiting for where all ended
                self._thread = threading.Thread(target=self._work, name="kconv-checks", daemon=True)
                self._thread.start()
        self._jobs.put((key, blocks, agree))

    def tell(self, number: int, call: Callable[[], None]) -> None:
        """``call`` once what piece ``number`` of some list is made of needs no more comparing."""
        with self._changed:
            self._held.append((number, call))
            if self._left or self._wrong:
                return
            ready, self._held = self._held, []
        for _, each in ready:
            each()

    def settled(self) -> frozenset[str]:
        """The formats whose kernels differ, once all is compared. Raises what comparing raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._left)
        if self._failure is not None:
            raise self._failure
        return frozenset(format for _, format, _ in self._wrong)

    def pass_on(self, again: frozenset[int]) -> None:
        """Pass on all that was told but of the pieces that are made ``again``."""
        with self._changed:
            ready, self._held = self._held, []
            self._wrong.clear()
        for number, each in ready:
            if number not in again:
                each()

    def _work(self) -> None:
        while True:
            key, blocks, agree = self._jobs.get()
            try:
                agreed = self._failure is None and agree()
            except BaseException as failure:
                self._failure, agreed = failure, False
            if self._failure is None:  # else it is not known how it would have come out
                self._judged(key, blocks, agreed)
            with self._changed:
                self._left -= 1
                if not agreed:
                    self._wrong.add(key)
                self._changed.notify_all()
