"""Objects whose parts are sent while their files are still being written (``core.outlet.Outlet``).

A part is sent once all its bytes are there, whatever the order in which they come; where its borders are the
plan tells. With a copy on the disk parts are read from that. Without, they are gathered in memory: in the
order of the bytes one or two of each file are open, and no more than ``_WAITING`` wait to be sent; whoever
writes waits for those. Where bytes come in another order and more parts are open than ``IN_MEMORY``, further
ones are gathered in TMPDIR. Parts that an ended run has sent are not sent again (resumed_uploads.py).
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from ..core.files import explained
from ..core.outlet import OutletFile
from ..core.progress import Progress
from ..core.system_files import bytes_at, memory_of_a_file, open_to_write, write_at
from .multipart import AT_A_TIME, Sent, Upload, begun_upload, is_tag_of, part_borders, send_part
from .object_names import ObjectPlace
from .resumed_uploads import Resumption
from .upload_notes import OpenUpload

USUAL = 16 << 20
"""Bytes of a part, unless there would be too many: as few as are worth a request, since several wait."""
IN_MEMORY = 1 << 30
"""Bytes of parts that are open in memory, at most."""
_WAITING = 3  # parts that are whole, besides those that are being sent
_READ = 64 << 20  # bytes that are read at once
_PATIENCE = 0.2  # seconds between looks at whether there is anything to wait for


@dataclass
class _Part:
    """A part, ``left`` of whose bytes are still to come; ``data`` are those that have, unless on the disk.

    ``there`` is the tag of one that an ended run has sent.
    """

    index: int
    start: int
    stop: int
    left: int
    data: bytearray | memoryview | None = None
    tag: str = ""
    there: str | None = None


@dataclass
class _File:
    """A file with its parts; ``handle`` is that of its copy."""

    path: Path
    upload: Upload
    parts: Sequence[_Part]
    handle: int | None
    starts: Sequence[int] = field(default=())


class PartSender:
    """Sends files to below ``above`` in an object store; ``keeps`` says whether copies lie on the disk, too.

    With a ``resumption`` it goes on with what ended runs have sent. Used as a context manager, behind which
    no upload is open: what was not completed is ended.
    """

    def __init__(self, above: ObjectPlace, *, keeps: bool, resumption: Resumption | None = None) -> None:
        self._above, self._keeps, self._resumption = above, keeps, resumption
        self._content: Mapping[str, Any] | None = None
        self._files: list[_File] = []
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._room = threading.Semaphore(AT_A_TIME + _WAITING)
        self._failure: BaseException | None = None
        self._held = self._done = 0  # bytes in memory; bytes sent
        self.most_held = 0

    def __enter__(self) -> Self:
        self._stack.__enter__()
        self._pool = ThreadPoolExecutor(AT_A_TIME)
        return self

    def __exit__(self, *failure: object) -> None:
        # before uploads are ended: a part that arrives behind that would stay
        self._failure = self._failure or InterruptedError("sending was stopped")
        try:
            self._pool.shutdown(wait=True, cancel_futures=True)
        finally:
            for part in (part for file in self._files for part in file.parts):
                _release(part)
            self._stack.__exit__(*failure)  # type: ignore[arg-type]

    @property
    def keeps(self) -> bool:
        """See ``Outlet``."""
        return self._keeps

    @property
    def paths(self) -> set[Path]:
        """Those of the files that were begun."""
        return {file.path for file in self._files}

    def about(self, content: Mapping[str, Any], *, provisional: bool) -> None:
        """See ``Outlet``: parts of an ended run are as good as those that would be made of the same."""
        self._content = content
        if self._resumption is not None:
            self._resumption.trusts = not (self._keeps or provisional)

    def begin(self, files: Sequence[OutletFile]) -> None:
        """See ``Outlet``; begins the uploads, or goes on with those of an ended run.

        Raises HubRefusal, EnvironmentProblem, UsageError, and what the resumption's judge raises.
        """
        bounds = [part_borders(each.size, USUAL) for each in files]
        left = [self._left(each, borders) for each, borders in zip(files, bounds, strict=True)]
        if self._resumption is not None:
            self._resumption.told(sum(map(len, bounds)), sum(len(found[1]) for found in left if found))
        for each, borders, found in zip(files, bounds, left, strict=True):
            handle = None
            if self._keeps:
                handle = open_to_write(each.temporary)
                self._stack.callback(os.close, handle)
                os.truncate(handle, each.size)
            upload = self._stack.enter_context(
                begun_upload(self._above / each.path.name, borders, content=self._content, left=found)
            )
            parts = [
                _Part(i, start, stop, _count(each.ranges, start, stop), there=upload.there.get(i))
                for i, (start, stop) in enumerate(borders)
            ]
            own = _File(each.path, upload, parts, handle, [part.start for part in parts])
            self._files.append(own)
            for part in parts:
                if self._is_done(part):
                    part.tag = part.there or ""
                    self._done += part.stop - part.start
                elif not part.left:  # nothing but what fills up the end
                    if handle is None:
                        self._gathered(part)
                    self._hand_over(own, part)

    def _left(
        self, file: OutletFile, borders: Sequence[tuple[int, int]]
    ) -> tuple[OpenUpload, dict[int, str]] | None:
        if self._resumption is None or self._content is None:
            return None
        return self._resumption.parts_of(self._above / file.path.name, borders, self._content)

    def _is_done(self, part: _Part) -> bool:
        return part.there is not None and self._resumption is not None and self._resumption.trusts

    def has(self, file: int, offset: int, count: int) -> bool:
        """See ``Outlet``: whether all parts these bytes belong to are in the store."""
        own = self._files[file]
        at = bisect.bisect_right(own.starts, offset) - 1
        parts = itertools.takewhile(lambda part: part.start < offset + count, own.parts[at:])
        return all(self._is_done(part) for part in parts)

    def write(self, file: int, data: memoryview, offset: int, /) -> None:
        """See ``Outlet``. Raises what has gone wrong with parts that were sent."""
        own = self._files[file]
        if own.handle is not None:
            write_at(own.handle, data, offset)
        end = offset + len(data)
        at = bisect.bisect_right(own.starts, offset) - 1
        while at < len(own.parts) and own.parts[at].start < end:
            part = own.parts[at]
            at += 1
            if self._is_done(part):
                continue
            start, stop = max(offset, part.start), min(end, part.stop)
            if own.handle is None:
                with memoryview(self._gathered(part)) as gathered:  # let go: it may be sent at once
                    gathered[start - part.start : stop - part.start] = data[start - offset : stop - offset]
            with self._lock:
                part.left -= stop - start
                whole = part.left == 0
            if whole:
                self._hand_over(own, part)
        self._raise_failure()

    def finish(self, progress: Progress) -> list[Sent]:
        """Wait until all parts are there; raises what has gone wrong with one."""
        total = sum(part.stop - part.start for file in self._files for part in file.parts)
        while self._done < total:
            self._raise_failure()
            progress("upload", self._done, total)
            threading.Event().wait(_PATIENCE)
        progress("upload", total, total)
        return [(file.upload, [part.tag for part in file.parts]) for file in self._files]

    def close(self) -> None:
        """Objects have been made of all uploads: none of them is open any more."""
        self._stack.close()

    def _gathered(self, part: _Part) -> bytearray | memoryview:
        """The memory a part is gathered in."""
        with self._lock:
            if part.data is None:
                size = part.stop - part.start
                if self._held + size <= IN_MEMORY:
                    part.data = bytearray(size)
                    self._held += size
                    self.most_held = max(self.most_held, self._held)
                else:
                    part.data = _on_disk(size)
            return part.data

    def _hand_over(self, file: _File, part: _Part) -> None:
        """Have a whole part sent, once there is room for another one among those that wait."""
        if file.handle is None:
            while not self._room.acquire(timeout=_PATIENCE):
                self._raise_failure()
        self._pool.submit(self._send, file, part)

    def _send(self, file: _File, part: _Part) -> None:
        try:
            if self._failure is None:
                data = _contents(file, part)
                self._forget(part)
                same = part.there is not None and is_tag_of(part.there, data)
                part.tag = str(part.there) if same else send_part(file.upload, part.index, data)
                with self._lock:
                    self._done += part.stop - part.start
        except BaseException as error:  # handed to those who write and wait
            self._failure = self._failure or error
        finally:
            self._forget(part)
            if file.handle is None:
                self._room.release()

    def _forget(self, part: _Part) -> None:
        """Let go of the memory a part was gathered in."""
        with self._lock:
            self._held -= len(part.data) if isinstance(part.data, bytearray) else 0
            _release(part)

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _count(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> int:
    """How many bytes of the ranges lie between two places."""
    return sum(max(0, min(stop, end) - max(start, begin)) for begin, end in ranges)


def _on_disk(size: int) -> memoryview:
    """So many bytes of an unnamed file in TMPDIR. Raises EnvironmentProblem where there is no room."""
    folder = Path(tempfile.gettempdir())
    with explained(folder, elsewhere="set TMPDIR to a larger disk"), tempfile.TemporaryFile() as made:
        for start in range(0, size, 1 << 20):  # written: a hole that cannot be filled later ends the process
            made.write(bytes(min(1 << 20, size - start)))
        made.flush()
        return memory_of_a_file(made.fileno(), size)


def _contents(file: _File, part: _Part) -> bytes:
    """A copy: the store's client takes nothing else as it is."""
    if file.handle is not None:
        starts = range(part.start, part.stop, _READ)
        return b"".join(bytes_at(file.handle, min(_READ, part.stop - start), start) for start in starts)
    assert part.data is not None
    return bytes(part.data)


def _release(part: _Part) -> None:
    if isinstance(part.data, memoryview):
        part.data.release()
    part.data = None
