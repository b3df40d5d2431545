"""Files of a repository into huggingface_hub's cache: resumed after a kill, retried, held to their hashes.

Contents grow in ``blobs/ETAG.kconv.incomplete``, under the lock huggingface_hub takes for them, and get
their name when their hash is the one the Hub lists. What a killed run leaves the next one hashes and goes on
with.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ..core import progress as core_progress
from ..core.errors import EnvironmentProblem, KconvError
from ..core.files import explained, nearest_existing
from ..core.progress import Progress, silent
from ..core.receipts import remember
from ..core.sizes import size_text
from ..core.system_files import rename, sync
from .cache import blob, cache_folder, link, lock_file, snapshot
from .evidence import git_digest
from .refusals import incomplete
from .source import HubFile, HubSource
from .transfer import pieces
from .xet import Xet, XetFailed

AT_ONCE = 4
"""Files that are fetched at the same time."""
_CHUNK = 1 << 20  # bytes hashed at once of what was here
_LARGE = 1 << 20  # bytes of a file that is worth a word
_ELSEWHERE = "move the cache to another disk with HF_HOME"


def fetch_files(source: HubSource, files: Sequence[HubFile], progress: Progress = silent) -> Path:
    """Have ``files`` in the cache, and return the folder of the commit that holds them.

    What is there is not asked for again; of large files there only the length is looked at (whoever reads
    them hashes them). Calls ``progress("download", bytes done, bytes in all)``. Raises HubRefusal, and
    EnvironmentProblem for the network, for a want of space and for contents that are not what the Hub lists.
    """
    missing = [file for file in files if not is_here(source, file)]
    folder = snapshot(source.repository, source.commit)
    if not missing:
        return folder
    if source.unreached is not None:
        raise _incomplete(source, missing)
    _check_space(source, missing)
    _Downloads(source, missing).run(progress)
    return folder


class _Downloads:
    """Files that are fetched side by side; the caller's thread waits, reports and can be interrupted."""

    def __init__(self, source: HubSource, files: Sequence[HubFile]) -> None:
        self._source, self._xet = source, Xet(source)
        self._files: queue.SimpleQueue[HubFile] = queue.SimpleQueue()
        for file in files:
            self._files.put(file)
        self._done = {file.path: 0 for file in files}  # bytes
        self._total = sum(file.size for file in files)
        self._failure: BaseException | None = None
        self._stopped = threading.Event()

    def run(self, progress: Progress) -> None:
        """Fetch them all. Raises what the first failure is."""
        count = min(AT_ONCE, len(self._done))
        # daemons: one that waits for a server does not keep the process
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    progress("download", sum(self._done.values()), self._total)
                    thread.join(0.1)
        except BaseException:
            self._stopped.set()
            raise
        if self._failure is not None:
            raise self._failure
        progress("download", self._total, self._total)

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                file = self._files.get_nowait()
            except queue.Empty:
                return
            try:
                self._fetch(file)
            except BaseException as error:  # handed to the thread that waits
                self._failure = self._failure or error
                self._stopped.set()

    def _fetch(self, file: HubFile) -> None:
        """Have one file in the cache, and its place in the commit's folder."""
        source = self._source
        contents = blob(source.repository, file.etag)
        with explained(contents, elsewhere=_ELSEWHERE), _locked(source, file, self._stopped.is_set):
            if not _has(contents, file):
                contents.parent.mkdir(parents=True, exist_ok=True)
                self._download(file, contents)
            link(source.repository, source.commit, file.path, file.etag)
        self._done[file.path] = file.size

    def _download(self, file: HubFile, contents: Path) -> None:
        """Fetch contents until they are what the Hub lists, or are not for the second time.

        That time they come by plain HTTP: hf_xet's streams pass on chunks that were damaged in its store.
        """
        partial = _partial(contents)
        for by_xet in (self._xet.offers(file), False):
            found = self._append(file, partial, by_xet=by_xet)
            if found == file.etag:
                rename(partial, contents)
                if file.sha256 is not None:
                    remember(contents, found)
                return
            partial.unlink()
            self._done[file.path] = 0
            core_progress.on_remark(f"{file.path}: what came is not what the Hub lists")
        raise EnvironmentProblem(
            f"{file.path} of {self._source.asked} came with other contents than the Hub lists, twice: "
            f"{_kind(file)} {found}, expected {file.etag}",
            hint="something on the way changes it (a proxy, the memory or the disk of this machine); nothing "
            "of it was kept",
        )

    def _append(self, file: HubFile, partial: Path, *, by_xet: bool) -> str:
        """Complete the file that was begun, and return the hash of all of it."""
        digest = _digest(file)
        with open(partial, "ab+") as target:
            have = target.seek(0, os.SEEK_END)
            if have > file.size:
                target.truncate(0)
                have = 0
            if have and file.size > _LARGE:
                core_progress.on_remark(
                    f"{file.path}: going on after {size_text(have)} of {size_text(file.size)}"
                )
            target.seek(0)
            for begin in range(0, have, _CHUNK):
                digest.update(target.read(min(_CHUNK, have - begin)))
                if self._stopped.is_set():
                    raise InterruptedError(f"fetching {file.path} was stopped")
            for piece in self._pieces(file, have, by_xet=by_xet):
                target.write(piece)
                target.flush()  # what is killed now has it
                digest.update(piece)
                have += len(piece)
                self._done[file.path] = have
            sync(target.fileno())
        return digest.hexdigest()

    def _pieces(self, file: HubFile, start: int, *, by_xet: bool) -> Iterator[bytes]:
        """By Xet where that works, from where it stops by plain HTTP."""
        if by_xet and start < file.size:
            try:
                for piece in self._xet.pieces(file, start, stopped=self._stopped.is_set):
                    yield piece
                    start += len(piece)
            except XetFailed:
                pass
        yield from pieces(self._source, file, start, stopped=self._stopped.is_set)


def _digest(file: HubFile) -> hashlib._Hash:
    """What gives the hash the Hub calls the contents by: SHA-256, or Git's of small files."""
    if file.sha256 is not None:
        return hashlib.sha256()
    return git_digest(file.size)


def _partial(contents: Path) -> Path:
    """Where contents grow."""
    return contents.with_name(f"{contents.name}.kconv.incomplete")


def _kind(file: HubFile) -> str:
    return "SHA-256" if file.sha256 is not None else "Git's SHA-1"


def is_here(source: HubSource, file: HubFile) -> bool:
    """Whether the cache has a file of the commit, as far as ``fetch_files`` looks."""
    return _has(snapshot(source.repository, source.commit) / file.path, file)


def _has(path: Path, file: HubFile) -> bool:
    """Whether a file of the cache may be this one: it has its length, and if it is small its hash."""
    try:
        if path.stat().st_size != file.size:
            return False
        if file.sha256 is not None or not file.git:
            return True
        digest = _digest(file)
        digest.update(path.read_bytes())
        return digest.hexdigest() == file.git
    except OSError:
        return False


@contextlib.contextmanager
def _locked(source: HubSource, file: HubFile, stopped: Callable[[], bool]) -> Iterator[None]:
    """Wait until nobody else fetches these contents, huggingface_hub included. Raises OSError."""
    from filelock import Timeout
    from huggingface_hub.utils import WeakFileLock

    path = lock_file(source.repository, file.etag)
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(WeakFileLock(path, timeout=0.5))
                break
            except Timeout:
                if stopped():
                    raise InterruptedError("waiting for another download was stopped") from None
        yield


def _check_space(source: HubSource, missing: Sequence[HubFile]) -> None:
    """Refuse before anything is fetched what there is no room for. Raises EnvironmentProblem."""
    needed = 0
    for file in missing:
        if _has(blob(source.repository, file.etag), file):  # of another commit
            continue
        with contextlib.suppress(OSError):
            needed -= _partial(blob(source.repository, file.etag)).stat().st_size
        needed += file.size
    there = nearest_existing(cache_folder())
    with explained(there, elsewhere=_ELSEWHERE):
        free = shutil.disk_usage(there).free
    if needed > free:
        raise EnvironmentProblem(
            f"{source.asked} needs {size_text(needed)} more in the Hub's cache, and {there} has "
            f"{size_text(free)} free",
            hint=f"free some space (`hf cache ls` shows what is there), or {_ELSEWHERE}",
        )


def _incomplete(source: HubSource, missing: Sequence[HubFile]) -> KconvError:
    """The error for a cache that holds a part of what is needed, while the Hub gives no more."""
    total = size_text(sum(file.size for file in missing))
    assert source.unreached is not None
    return incomplete(source.asked, source.commit, [file.path for file in missing], total, source.unreached)
