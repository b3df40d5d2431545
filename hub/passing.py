"""One pass over all weights in the order of their bytes: blocks come, are summed up, used, and forgotten.

What each part of the work reads is found out beforehand, by letting it read memory as it comes. The parts are
then done in the order in which the last byte that they need comes, which is nearly the order of the file: few
blocks wait in memory. Where more than the window would have to wait (a matrix that is transposed, say), what
is needed last is let go and fetched again, which is known before the first byte and announced.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.cores import available_cores
from ..core.sizes import decimal_size
from ..core.system_files import private_memory
from .evidence import git_digest
from .stream import GRANULE, StreamedFile, recorded

if TYPE_CHECKING:
    from .stream import WeightStream


@dataclass(frozen=True)
class Block:
    """Bytes ``start..stop`` of a file."""

    file: StreamedFile
    start: int
    stop: int


@dataclass
class Order:
    """In which order parts are done, what each takes from the blocks, and what has to be fetched again.

    ``parts`` are numbers of parts, ``taken`` the blocks of each, in that order; ``again`` is in bytes.
    """

    parts: list[int]
    taken: list[set[int]]
    again: int = 0


@dataclass
class Needs:
    """What a part reads: the bytes it needs of each block, as spans of the file, and its last byte of all."""

    spans: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    last: tuple[int, int] = (-1, 0)


def ordered(needs: Sequence[Needs], window: int) -> Order:
    """The order of parts that keeps no more than ``window`` blocks waiting."""
    parts = sorted(range(len(needs)), key=lambda i: (needs[i].last, i))
    uses: dict[int, deque[int]] = {}
    for place, part in enumerate(parts):
        for block in needs[part].spans:
            uses.setdefault(block, deque()).append(place)
    order = Order(parts, [set(needs[part].spans) for part in parts])
    waiting: set[int] = set()
    arrived = iter(sorted(uses))
    latest = next(arrived, None)
    for place, part in enumerate(parts):
        while latest is not None and latest <= needs[part].last[0]:
            if uses[latest]:
                waiting.add(latest)
            latest = next(arrived, None)
        while len(waiting) > window:
            given_up = max(waiting, key=lambda block: uses[block][0])
            waiting.remove(given_up)
            for later in uses[given_up]:
                order.taken[later].discard(given_up)
                order.again += _fetched_again(needs[parts[later]].spans[given_up])
        for block in order.taken[place]:
            uses[block].popleft()
            if not uses[block]:
                waiting.discard(block)
    return order


def _fetched_again(spans: list[tuple[int, int]]) -> int:
    """Bytes of the granules in which these spans lie."""
    granules = {g for start, stop in spans for g in range(start // GRANULE, -(-stop // GRANULE))}
    return len(granules) * GRANULE


class Pass:
    """Fetches blocks by a few threads, sums them up in one, and holds them for those who work on parts."""

    def __init__(
        self, stream: WeightStream, parts: Sequence[Any], read: Callable[[Any], object], *, whole: bool
    ) -> None:
        assert stream.block % GRANULE == 0
        assert 0 < stream.ahead < stream.window
        self._stream, self._whole = stream, whole
        self._files = list(stream.files.values())
        self._blocks = [
            Block(file, start, min(start + stream.block, file.size))
            for file in self._files
            for start in range(0, file.size, stream.block)
        ]
        self._first: dict[StreamedFile, int] = {}
        for number, block in enumerate(self._blocks):
            self._first.setdefault(block.file, number)
        with ThreadPoolExecutor(available_cores()) as pool:
            needs = list(pool.map(lambda part: self._needs(part, read), parts))
        order = ordered(needs, stream.window)
        self.parts = [parts[i] for i in order.parts]
        self.again = order.again
        self._taken = dict(zip(self.parts, order.taken, strict=True))
        self._left = [0] * len(self._blocks)  # how many parts still need a block
        for taken in order.taken:
            for number in taken:
                self._left[number] += 1
        unsummed = [whole and not block.file.is_summed for block in self._blocks]
        self._wanted = [number for number, left in enumerate(self._left) if left or unsummed[number]]
        self._next = 0  # place in _wanted
        self._held = 0  # blocks in memory or on the way
        self._ready: dict[int, memoryview] = {}
        self._unsummed = {number for number, wanted in enumerate(unsummed) if wanted}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._stopped = False
        self._mine = threading.local()
        self._threads: list[threading.Thread] = []

    def _needs(self, part: Any, read: Callable[[Any], object]) -> Needs:
        with recorded() as log:
            read(part)
        needs, size = Needs(), self._stream.block
        for file, offset, count in log:
            stop = offset + count
            for place in range(offset // size, -(-stop // size) if count else 0):
                number = self._first[file] + place
                span = max(offset, place * size), min(stop, (place + 1) * size)
                needs.spans.setdefault(number, []).append(span)
                needs.last = max(needs.last, (number, span[1]))
        return needs

    def again_text(self) -> str:
        """What is fetched twice, and why."""
        return (
            f"streamed: {decimal_size(self.again)} of {decimal_size(self._stream.size)} are fetched twice: "
            "weights that belong together lie too far apart to wait for each other in memory"
        )

    def begin(self) -> None:
        """Start to fetch."""
        for file in self._files:
            file.passing = self
        work = [self._fetch] * self._stream.ahead + ([self._sum_up] if self._whole else [])
        self._threads = [threading.Thread(target=self._guarded, args=(each,), daemon=True) for each in work]
        for thread in self._threads:
            thread.start()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # handed to those who wait
            with self._changed:
                if self._failure is None and not self._stopped:
                    self._failure = error
                self._changed.notify_all()

    def _over(self) -> bool:
        return self._stopped or self._failure is not None

    def _fetch(self) -> None:
        while True:
            with self._changed:
                while (
                    self._next < len(self._wanted) and self._held >= self._stream.window and not self._over()
                ):
                    self._changed.wait()
                if self._next >= len(self._wanted) or self._over():
                    return
                number = self._wanted[self._next]
                self._next += 1
                self._held += 1
            block = self._blocks[number]
            data = private_memory(block.stop - block.start)
            block.file.fill(data, block.start, self._over)
            with self._changed:
                self._ready[number] = data
                self._let_go(number)
                self._changed.notify_all()

    def _sum_up(self) -> None:
        for file in (each for each in self._files if not each.is_summed):
            sums = hashlib.sha256(), git_digest(file.size)
            for number in range(self._first.get(file, 0), len(self._blocks)):
                if self._blocks[number].file is not file:
                    break
                with self._changed:
                    while number not in self._ready and not self._over():
                        self._changed.wait()
                    if self._over():
                        return
                    data = self._ready[number]
                sums[0].update(data)
                if file.git is not None:
                    sums[1].update(data)
                file.summing(self._blocks[number].stop)
                del data
                with self._changed:
                    self._unsummed.discard(number)
                    self._let_go(number)
                    self._changed.notify_all()
            file.sum_up(sums[0].hexdigest(), sums[1].hexdigest())

    def _let_go(self, number: int) -> None:
        """Forget a block nobody needs any more; the lock is held."""
        if number in self._ready and self._left[number] == 0 and number not in self._unsummed:
            del self._ready[number]
            self._held -= 1

    @contextmanager
    def working_on(self, part: Any) -> Iterator[None]:
        """See ``core.elsewhere.Stream.working_on``."""
        taken = self._taken[part]
        self._mine.blocks = taken
        try:
            yield
        finally:
            self._mine.blocks = set()
            with self._changed:
                for number in taken:
                    self._left[number] -= 1
                    self._let_go(number)
                self._changed.notify_all()

    def read_into(self, file: StreamedFile, view: memoryview, offset: int) -> None:
        """Fill ``view`` from blocks this thread's part takes, once they are there; fetch all else anew."""
        mine: set[int] = getattr(self._mine, "blocks", set())
        size, end = self._stream.block, offset + len(view)
        while offset < end:
            number = self._first[file] + offset // size
            stop = min(end, (offset // size + 1) * size)
            piece = view[len(view) - (end - offset) : len(view) - (end - stop)]
            if number in mine:
                begin = offset % size
                piece[:] = self._wait_for(number)[begin : begin + len(piece)]
            else:
                file.fetch(piece, offset)
            offset = stop

    def _wait_for(self, number: int) -> memoryview:
        with self._changed:
            while number not in self._ready and not self._over():
                self._changed.wait()
            self.raise_failure()
            if self._stopped:
                raise InterruptedError("fetching was stopped")
            return self._ready[number]

    def raise_failure(self) -> None:
        """Raise what went wrong in a thread of this pass, if anything did."""
        if self._failure is not None:
            raise self._failure

    def abort(self) -> None:
        """Fetch no more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def join(self) -> None:
        """Wait until all has come. Raises what went wrong."""
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.1)  # so that Ctrl-C gets through
        self.raise_failure()
        for file in self._files:
            file.passing = None
