"""Files of weights read where they lie, without a copy on this machine: any range, or all of them in order.

A ``StreamedFile`` gives any range of one file, fetched when it is asked for (headers, the proof). A
``WeightStream`` fetches all files of a checkpoint in the order of their bytes while they are converted
(hub/passing.py). Whoever reads, reads whole granules of a mebibyte, and a granule must be the same each
time: so what the proof fetches again is what was summed up when the file went by as a whole, and the SHA-256
of all, which must be the Hub's, speaks for every byte that was ever used.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..core.byte_source import Identity
from ..core.errors import DamagedOnTheWay, EnvironmentProblem
from ..core.progress import Progress
from ..core.sizes import decimal_size
from .kept_granules import Kept
from .ranges import Ranges

if TYPE_CHECKING:
    from .passing import Pass

GRANULE = 1 << 20
"""Bytes that are fetched, and recognized, together."""

_DIGEST = 16  # bytes that tell a granule from any other
_LARGEST = 32 * GRANULE  # of one request for a range somebody waits for
_SMALL = 8  # granules of a request all of which are kept; else those at its ends

_recording = threading.local()


@contextmanager
def recorded() -> Iterator[list[tuple[StreamedFile, int, int]]]:
    """Note what this thread reads of remote files, (file, offset, bytes), which is given anything at all."""
    log: list[tuple[StreamedFile, int, int]] = []
    _recording.log = log
    try:
        with np.errstate(all="ignore"):  # what anything at all may be multiplied to
            yield log
    finally:
        _recording.log = None


def changed(name: str) -> DamagedOnTheWay:
    """What to raise where bytes that came twice are not the same."""
    return DamagedOnTheWay(
        f"{name}: bytes that were fetched twice came differently: they were damaged on the way, or the file "
        "was changed",
        hint="run it again",
    )


class StreamedFile:
    """A file elsewhere as a source of bytes (``core.byte_source.SummedSource``).

    ``expected`` is the SHA-256 its keeper gives, in hexadecimal, None where it gives none; ``git`` Git's id
    of it as a blob, which the Hub gives for files it keeps in Git itself.
    """

    def __init__(self, ranges: Ranges, expected: str | None = None, git: str | None = None) -> None:
        self.ranges, self.expected, self.git = ranges, expected, git
        self.fetched = 0
        """Bytes that were asked for outside of a pass."""
        self.passing: Pass | None = None
        self._digests: dict[int, bytes] = {}
        self._told: set[int] = set()  # granules that a journal has
        self._sum_told = False
        self.kept = Kept()
        self._sum: str | None = None
        self._summed = 0

    @property
    def size(self) -> int:
        """In bytes."""
        return self.ranges.size

    @property
    def identity(self) -> Identity:
        """What its keeper calls it, as a number: that it stays the same file is seen to with each answer."""
        version = hashlib.blake2b(self.ranges.version.encode(), digest_size=6).digest()
        return 0, 0, self.size, int.from_bytes(version, "big")

    def identity_now(self) -> Identity:
        """See ``identity``."""
        return self.identity

    def read_into(self, view: memoryview, offset: int) -> int:
        """See ``ByteSource.read_into``; raises EnvironmentProblem where bytes cannot be had."""
        count = max(0, min(len(view), self.size - offset))
        log = getattr(_recording, "log", None)
        if log is not None:
            log.append((self, offset, count))
        elif self.passing is not None:
            self.passing.read_into(self, view[:count], offset)
        else:
            self.fetch(view[:count], offset)
        return count

    def fetch(self, view: memoryview, offset: int) -> None:
        """Fill ``view``, with requests of its own for whole granules but those at hand."""
        end = offset + len(view)
        at = offset // GRANULE
        while at * GRANULE < end:
            data, first = self.kept.find(self, at), at
            if data is None:
                stop = min(-(-end // GRANULE), at + _LARGEST // GRANULE)
                stop = next((i for i in range(at + 1, stop) if self.kept.find(self, i) is not None), stop)
                data = self._granules(at, stop)
                at = stop
            else:
                at += 1
            start = max(offset, first * GRANULE)
            stop = min(end, first * GRANULE + len(data))
            view[start - offset : stop - offset] = data[start - first * GRANULE : stop - first * GRANULE]

    def _granules(self, first: int, stop: int) -> memoryview:
        """Those from ``first`` to ``stop`` in one request; some of them stay at hand."""
        start = first * GRANULE
        data = memoryview(bytearray(min(stop * GRANULE, self.size) - start))
        self.ranges.fetch(data, start)
        self.fetched += len(data)
        self.recognize(data, start)
        for granule in range(first, stop) if stop - first <= _SMALL else (first, stop - 1):
            begin = granule * GRANULE - start
            self.kept.keep(self, granule, data[begin : begin + GRANULE])
        return data

    def fill(self, view: memoryview, start: int, stopped: Callable[[], bool]) -> None:
        """Fill ``view``, whole granules, with one request for all but those at hand at its ends."""
        first, last = 0, len(view)
        while first < last and (data := self.kept.find(self, (start + first) // GRANULE)) is not None:
            view[first : first + len(data)] = data
            first += len(data)
        while first < last and (data := self.kept.find(self, (start + last - 1) // GRANULE)) is not None:
            view[last - len(data) : last] = data
            last -= len(data)
        if first < last:
            self.ranges.fetch(view[first:last], start + first, stopped)
            self.recognize(view[first:last], start + first)

    def recognize(self, data: memoryview, start: int) -> None:
        """Hold whole granules to what they were when they came first. Raises EnvironmentProblem."""
        for begin in range(0, len(data), GRANULE):
            digest = hashlib.blake2b(data[begin : begin + GRANULE], digest_size=_DIGEST).digest()
            if self._digests.setdefault((start + begin) // GRANULE, digest) != digest:
                raise changed(self.ranges.name)

    @property
    def is_summed(self) -> bool:
        """Whether all of it has come, and was right."""
        return self._sum is not None

    def arrivals(self) -> dict[str, Any] | None:
        """Digests of granules that were not told of before, in runs, and the sum; None for nothing new."""
        summed = self._sum  # first: it speaks for digests that are there by then
        new = sorted(self._digests.copy().keys() - self._told)  # a copy: others put more in meanwhile
        if not new and (summed is None or self._sum_told):
            return None
        runs: list[tuple[int, list[str]]] = []
        for granule in new:
            if not runs or granule != runs[-1][0] + len(runs[-1][1]):
                runs.append((granule, []))
            runs[-1][1].append(self._digests[granule].hex())
        self._told.update(new)
        self._sum_told = summed is not None
        return {"granules": [[first, "".join(digests)] for first, digests in runs], "sha256": summed}

    def restore(self, told: Mapping[str, Any]) -> None:
        """Hold what comes to what ``arrivals`` told of in an earlier run. Raises as ``recognize``."""
        for first, digests in told["granules"]:
            data = bytes.fromhex(digests)
            for place in range(0, len(data), _DIGEST):
                granule = int(first) + place // _DIGEST
                if (
                    self._digests.setdefault(granule, data[place : place + _DIGEST])
                    != data[place : place + _DIGEST]
                ):
                    raise changed(self.ranges.name)
                self._told.add(granule)
        if told["sha256"] is not None:
            self._sum, self._sum_told = str(told["sha256"]), True

    @property
    def bytes_again(self) -> int:
        """Bytes that a run has fetched of it which was ended before it could sum up all of them."""
        return 0 if self.is_summed else sum(min(GRANULE, self.size - g * GRANULE) for g in self._told)

    def summing(self, done: int) -> None:
        """So many bytes of it have been summed up."""
        self._summed = done

    def sum_up(self, sha256: str, git: str) -> None:
        """What all of it sums up to. Raises EnvironmentProblem where that is not what its keeper says."""
        for found, expected, kind in ((sha256, self.expected, "SHA-256"), (git, self.git, "Git's id")):
            if expected is not None and found != expected:
                raise DamagedOnTheWay(
                    f"{self.ranges.name}: {kind} of the bytes that came is {found}, expected {expected}: "
                    "they were damaged on the way",
                    hint="run it again; nothing was written under its final name",
                )
        self._sum = sha256

    def sha256(self, progress: Progress, stopped: Callable[[], bool]) -> str:
        """See ``SummedSource.sha256``: what the pass over the weights makes of it."""
        while self._sum is None:
            if stopped():
                raise InterruptedError(f"fetching {self.ranges.name} was stopped")
            if self.passing is not None:
                self.passing.raise_failure()
            progress("hash", self._summed, self.size)
            time.sleep(0.02)
        progress("hash", self.size, self.size)
        return self._sum

    def __reduce__(self) -> NoReturn:
        raise EnvironmentProblem(
            f"{self.ranges.name} is streamed, and cannot be sent to another process",
            hint="leave out --stream, so that all processes read the same files",
        )


class WeightStream:
    """All files of weights of a checkpoint, in order (``core.elsewhere.Stream``).

    ``block`` bytes are fetched with a request, ``ahead`` requests at a time, and no more than ``window``
    blocks are in memory. ``announce`` is told what is fetched more than once.
    """

    def __init__(
        self,
        files: dict[str, StreamedFile],
        announce: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.files, self.announce = files, announce
        self.block, self.ahead, self.window = 16 * GRANULE, 3, 8
        self._pass: Pass | None = None
        self._whole = False
        kept = Kept()
        for file in files.values():
            kept.take_over(file.kept)
            file.kept = kept

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())

    def opener(self, name: str) -> Callable[[Path], StreamedFile]:
        """What ``core.elsewhere.Elsewhere`` wants for a file of that name."""
        return lambda path: self.files[name]

    def arranged(self, parts: Any, read: Any) -> Any:
        """See ``Stream.arranged``; the first time all bytes are fetched and summed up, later those needed."""
        from .passing import Pass

        if self._pass is not None:
            self._pass.join()
        self._pass = Pass(self, parts, read, whole=not self._whole)
        self._whole = True
        if self._pass.again:
            self.announce(self._pass.again_text())
        self._pass.begin()
        return self._pass.parts

    def working_on(self, part: Any) -> Any:
        """See ``Stream.working_on``."""
        assert self._pass is not None
        return self._pass.working_on(part)

    def arrivals(self) -> dict[str, Any]:
        """See ``Stream.arrivals``: those of each file that has any, by its name."""
        told = {name: file.arrivals() for name, file in self.files.items()}
        return {name: each for name, each in told.items() if each is not None}

    def restore(self, arrivals: Sequence[Mapping[str, Any]]) -> None:
        """See ``Stream.restore``; announces what is going to be fetched again."""
        for each in arrivals:
            for name, told in each.items():
                self.files[name].restore(told)
        again = sum(file.bytes_again for file in self.files.values())
        whole = [file for file in self.files.values() if file.is_summed]
        text = f"streamed: {len(whole)} of {len(self.files)} files had come whole"
        if again:
            text += f"; {decimal_size(again)} of the others are fetched again, for their sums"
        self.announce(text)

    def abort(self) -> None:
        """See ``Stream.abort``."""
        if self._pass is not None:
            self._pass.abort()
