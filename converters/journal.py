"""The journal of a conversion: which pieces of its plan are on the disk, so that another run can go on.

A folder beside the unfinished files (core/kept.py): ``journal.json`` says what they were to become, of which
inputs, by which versions; every writer, on whichever machine, has a file of its own, ``NAME.pieces``, since
appends by many are not safe on network file systems. A line is appended once the data it speaks for are
synced, and has a checksum; so has each piece, of its bytes in all files. A line that is torn, or a piece
whose bytes are others, counts as not done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..core.claims import claim, reclaim
from ..core.elsewhere import Stream
from ..core.errors import OutputExists
from ..core.input_files import InputFile
from ..core.kept import CONTENT, Kept
from ..core.receipts import known
from ..core.system_files import append, open_to_write, release, rename, synced
from ..quant.importance import Importance
from .done_pieces import SUFFIX
from .manifest import versions
from .pieces import Piece

FORMAT = 1
INTERVAL = 5.0
"""Seconds between two lines: so much work may be lost, and what a sync of the data takes."""

LAG = 20.0
"""Seconds a sync may take before writers wait for it."""


def fingerprint(
    layouts: Iterable[tuple[bytes, int]],
    *,
    importance: Importance | None = None,
    allow_nan: bool = False,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """What decides every byte of the files but the weights themselves: plan, importance data, versions.

    ``layouts`` are, for each file, the bytes that say where everything is in it, and how many bytes of
    weights there are (``FilePlan.layout``); ``packages`` have a hand in the bytes besides those that always
    have. Equal on every machine that would write the same bytes.
    """
    layout = hashlib.sha256()
    for header, size in layouts:
        layout.update(f"{len(header)} {size} ".encode() + header)
    weighing = hashlib.sha256()
    for name, values in sorted({} if importance is None else importance.values.items()):
        weighing.update(f"{name} {values.size} ".encode() + values.tobytes())
    used = {name: version for name, version in versions(packages).items() if name != "kernels"}
    return {
        "format": FORMAT,
        "versions": used,
        "layout": layout.hexdigest(),
        "importance": None if importance is None else weighing.hexdigest(),
        "allow_nan": allow_nan,
    }


def source_stamps(files: Sequence[InputFile]) -> list[dict[str, Any]]:
    """Which inputs they are: size, times and inode, and SHA-256 where a receipt has it.

    No device, whose number another machine, or the next start of this one, may change. Of bytes elsewhere
    what identifies them there.
    """
    stamps = []
    for file in files:
        handle, change = file.fileno(), list(file.identity)
        if handle is not None:
            status = os.fstat(handle)
            change = [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]
        stamps.append({"name": file.path.name, "bytes": file.size, "change": change, "sha256": known(file)})
    return stamps


def differences(
    kept: Kept, fingerprint: Mapping[str, Any], sources: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What is not as it was when the journal was begun, in words; none where a run can go on with it."""
    before, told = kept.content.get("fingerprint"), []
    if not isinstance(before, dict) or before.get("format") != FORMAT:
        return ["its journal is damaged or of another version of kconv"]
    if before.get("versions") != fingerprint["versions"]:
        told.append("versions of kconv or of its packages changed")
    if before.get("layout") != fingerprint["layout"]:
        told.append("the plan of the files is another (types, options, configuration or tokenizer)")
    if before.get("importance") != fingerprint["importance"]:
        told.append("the importance data are others")
    if before.get("allow_nan") != fingerprint["allow_nan"]:
        told.append("--allow-nan was given only once")
    told += _changed_sources(kept.content.get("sources"), sources)
    return told


def _changed_sources(before: Any, now: Sequence[Mapping[str, Any]]) -> list[str]:
    if not isinstance(before, list) or not all(isinstance(each, dict) for each in before):
        return ["its journal is damaged"]
    if [each.get("name") for each in before] != [each["name"] for each in now]:
        return ["the checkpoint has other files"]
    changed = [
        new["name"]
        for old, new in zip(before, now, strict=True)
        if old.get("bytes") != new["bytes"]
        or (
            old.get("change") != new["change"]
            and (new["sha256"] is None or old.get("sha256") != new["sha256"])
        )
    ]
    return [f"{', '.join(changed[:3])} changed"] if changed else []


class Journal:
    """One writer's file in a journal's folder; a context manager, within which a thread appends to it.

    ``files`` are those whose data are synced before each line. Of weights from a ``stream`` lines say what
    has arrived, too, so that the sums of files, which come last, speak for all pieces. Leaving it well, or
    interrupted, appends what is left; ``finished`` raises OSError where syncing or appending failed, and
    waits where a sync takes so long that much could be lost: the disk sets the pace in the end anyway.
    """

    def __init__(
        self, folder: JournalFolder | Path, name: str, files: Sequence[Path], stream: Stream | None = None
    ) -> None:
        self._folder, self._name, self._files = folder, name, tuple(files)
        self._stream, self._lines = stream, 0
        self._lock, self._appending, self._stop = threading.Lock(), threading.Lock(), threading.Event()
        self._new: list[tuple[Piece, int]] = []
        self._not_finite: set[str] = set()
        self._failure: OSError | None = None
        self._since: float | None = None  # when syncing began
        self._idle = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kconv-journal", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        self._stop.set()
        self._thread.join()
        if kind is not None and issubclass(kind, Exception):
            return
        folder = self._folder
        if (
            not isinstance(folder, JournalFolder)
            or folder.is_established
            or (kind is None and folder.outlives)
        ):
            self.append()

    def _work(self) -> None:
        while not self._stop.wait(INTERVAL):
            self._idle.clear()
            self._since = time.monotonic()
            try:
                self.append()
            except OSError as error:
                self._failure = error
                return
            finally:
                self._since = None
                self._idle.set()

    def finished(self, piece: Piece, check: int, not_finite: str | None = None) -> None:
        """A piece has been written to all files; ``not_finite`` names its tensor if its weights are not."""
        since = self._since
        if since is not None and time.monotonic() - since > LAG:
            self._idle.wait()
        if self._failure is not None:
            raise self._failure
        with self._lock:
            self._new.append((piece, check))
            if not_finite is not None:
                self._not_finite.add(not_finite)

    def append(self) -> None:
        """Sync the data, then append what was finished before that, and sync that, too. Raises OSError."""
        with self._appending:
            if self._failure is not None:
                raise self._failure
            with self._lock:
                new, self._new = self._new, []
                names = sorted(self._not_finite)
            if not new:
                return
            for path in self._files:
                synced(path)
            place = self._folder
            if isinstance(place, JournalFolder):
                place.establish()
                place = place.path
            pieces = [[piece.index, piece.start, piece.stop, check] for piece, check in new]
            entry: dict[str, Any] = {"pieces": pieces, "not_finite": names}
            if self._stream is not None:
                entry |= {"line": self._lines, "arrived": self._stream.arrivals()}
            text = json.dumps(entry, separators=(",", ":")).encode()
            handle = open_to_write(place / f"{self._name}{SUFFIX}", make=True, append=True)
            try:  # a torn line before it must not harm it
                append(handle, b"\n%08x %s\n" % (zlib.crc32(text), text))
            finally:
                os.close(handle)
            self._lines += 1


class JournalFolder:
    """The folder of a journal, which is made when there is something to say in it.

    ``content`` makes ``journal.json``; ``kept`` says that the folder is one of an earlier run, and
    ``outlives`` that it is wanted once all is written: until the proof is done. Raises OutputExists where
    another run is at work on it.
    """

    def __init__(
        self,
        path: Path,
        content: Callable[[], Mapping[str, Any]],
        *,
        kept: bool = False,
        outlives: bool = False,
    ) -> None:
        self.path, self.outlives = path, outlives
        self._content = content
        self._handle = None
        if kept:
            try:
                self._handle = reclaim(path)
            except BlockingIOError as error:
                raise OutputExists(
                    f"another run is at work on the files {path} belongs to",
                    hint="wait for it, or end it and try again",
                ) from error

    @property
    def is_established(self) -> bool:
        """Whether there is something to go on with."""
        return self._handle is not None

    def establish(self, put: Callable[[Path], None] = lambda folder: None) -> None:
        """Make the folder; from here on the files it names stay. Raises OSError.

        ``put`` is called before that, to lay other things into it.
        """
        if self._handle is not None:
            return
        handle = claim(self.path, folder=True)
        try:
            put(self.path)
            temporary = self.path / f"{CONTENT}.new"
            content = json.dumps(self._content(), ensure_ascii=False)
            temporary.write_bytes(content.encode("utf-8", "backslashreplace"))  # JSON's own escapes, too
            synced(temporary)
            rename(temporary, self.path / CONTENT)
            for folder in (self.path, self.path.parent):
                with contextlib.suppress(OSError):  # some file systems sync no folders
                    synced(folder)
        except BaseException:
            release(handle)
            raise
        self._handle = handle

    def release(self) -> None:
        """Let go of it: it stays."""
        if self._handle is not None:
            release(self._handle)
            self._handle = None

    def remove(self) -> None:
        """It has done its duty."""
        if self._handle is not None:
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()
