"""Receipts for files that were hashed: the next conversion, type or proof need not read them for that again.

A receipt says which SHA-256 a file had (device, inode, bytes, times of change of its contents and of its
inode), and counts only while all of that is the same. Writing to a file sets its ctime, which no system call
can set back, so a file that was written to and had its mtime put back is noticed. Not noticed is what goes
past the file system: a write to the disk itself, rot on it, a clock that was set back
(docs/en/resume.md). So there are no receipts where ctime is not what POSIX makes of it, nor for a file
changed within the last two seconds: a second write could be in the same tick of the clock.

They lie in the user's cache, one for each file, or one for the sums of its pieces (piece_sums.py). Many
processes may write at once; what is damaged counts as missing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from .input_files import InputFile, file_sha256
from .machine import cache_folder
from .piece_sums import piece_count, piece_sums
from .progress import Progress, silent
from .system_files import file_system, is_own, open_to_read, rename

Hashed = Literal["now", "receipt"]
"""How a sum is known: by reading the file now, or by a receipt for an earlier reading."""

QUIET = 2_000_000_000
"""Nanoseconds for which a file must have been left alone; file systems count in up to whole seconds."""

FOLDER = "KCONV_RECEIPTS"
"""Environment variable: another folder than the user's cache to keep receipts in; empty: keep none."""

# Those whose ctime is set by the system's clock at every change of contents, and by nothing else. FAT and
# exFAT have none; FUSE, SMB and 9P show whatever the other side makes of it.
_LOCAL = {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs"}
_WITH_CTIME = _LOCAL | {"ceph", "gpfs", "lustre", "nfs", "nfs4"}
_SHARD = 32  # receipts in each of 256 folders; a receipt takes a block of 4 KiB
_LARGEST = 1 << 20  # bytes; one with the sums of pieces has a byte a megabyte of its file

Kind = Literal["sha256", "pieces"]
"""What a receipt has: the sum of the file, or those of its pieces one behind the other."""


class Stamp(NamedTuple):
    """Which file it is, and as of when; times in nanoseconds."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_quiet(self) -> bool:
        """Whether the file has been left alone for a while, so that another write would show."""
        return time.time_ns() - max(self.mtime_ns, self.ctime_ns) >= QUIET


_young: dict[Stamp, str] = {}
"""Sums of files, remembered too soon; they become receipts when they are asked for."""


def known(file: InputFile | Path) -> str | None:
    """The SHA-256 a receipt has for this file as it is now, in hexadecimal; None where there is none."""
    stamp = stamp_of(file)
    return None if stamp is None else _known(stamp)


def known_pieces(file: InputFile | Path) -> tuple[str, ...] | None:
    """As ``known`` the SHA-256 of each of the file's pieces."""
    stamp = stamp_of(file)
    sums = None if stamp is None else _kept(stamp, "pieces")
    if stamp is None or sums is None or len(sums) != 64 * piece_count(stamp.size):
        return None
    return tuple(sums[at : at + 64] for at in range(0, len(sums), 64))


def remember(file: InputFile | Path, sha256: str) -> None:
    """Keep a receipt, if one may be kept; the caller has hashed the very bytes the file has now.

    For a file just written (a download, which has its final name and mode by now) it is kept in this process
    until the file has been quiet.
    """
    stamp = stamp_of(file)
    if stamp is None:
        return
    if stamp.is_quiet:
        _keep(stamp, sha256)
    else:
        _young[stamp] = sha256
        while len(_young) > 1000:
            del _young[next(iter(_young))]


def sha256_of(
    file: InputFile,
    progress: Progress = silent,
    *,
    stopped: Callable[[], bool] = lambda: False,
    anew: bool = False,
) -> tuple[str, Hashed]:
    """A file's SHA-256 and how it is known; ``anew`` reads it whatever receipts say.

    The others are as of ``file_sha256``, and so is what is raised.
    """
    before = stamp_of(file)
    digest = None if before is None or anew else _known(before)
    if digest is not None:
        progress("hash", file.size, file.size)
        return digest, "receipt"
    quiet = before is not None and before.is_quiet  # as reading begins
    digest = file_sha256(file, progress, stopped=stopped)
    if before is not None and quiet and stamp_of(file) == before:
        _keep(before, digest)
    return digest, "now"


def pieces_of(
    file: InputFile,
    progress: Progress = silent,
    *,
    stopped: Callable[[], bool] = lambda: False,
    hurry: Callable[[], bool] = lambda: True,
    anew: bool = False,
) -> tuple[tuple[str, ...], Hashed]:
    """As ``sha256_of`` the sums of a file's pieces; the others are as of ``piece_sums``."""
    sums = None if anew else known_pieces(file)
    if sums is not None:
        progress("hash", file.size, file.size)
        return sums, "receipt"
    before = stamp_of(file)
    quiet = before is not None and before.is_quiet  # as reading begins
    sums = piece_sums(file, progress, stopped=stopped, hurry=hurry)
    if before is not None and quiet and stamp_of(file) == before:
        _keep(before, "".join(sums), "pieces")
    return sums, "now"


def _known(stamp: Stamp) -> str | None:
    digest = _kept(stamp)
    if digest is None and stamp in _young and stamp.is_quiet:
        digest = _young.pop(stamp, None)  # another thread may have been faster
        if digest is not None:
            _keep(stamp, digest)
    return digest


def stamp_of(file: InputFile | Path) -> Stamp | None:
    """Which file it is now; None if it is not of this machine, or its file system's times tell nothing."""
    try:
        with _handle_of(file) as handle:
            if handle is None or file_system(handle) not in _WITH_CTIME:
                return None
            status = os.fstat(handle)
    except OSError:
        return None
    return Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@contextlib.contextmanager
def _handle_of(file: InputFile | Path) -> Iterator[int | None]:
    if isinstance(file, InputFile):
        yield file.fileno()
        return
    handle = open_to_read(file)
    try:
        yield handle
    finally:
        os.close(handle)


def _folder() -> Path | None:
    named = os.environ.get(FOLDER)
    if named is not None:
        return Path(named) if named else None
    cache = cache_folder()
    return None if cache is None else cache / "receipts"


def _place(stamp: Stamp, kind: Kind) -> Path | None:
    """Where a receipt for this file lies; a later one takes the place of an earlier."""
    folder, name = _folder(), f"{stamp.device:x}-{stamp.inode:x}"
    own = name if kind == "sha256" else f"{name}-{kind}"
    return None if folder is None else folder / f"{zlib.crc32(name.encode()) & 0xFF:02x}" / own


def _kept(stamp: Stamp, kind: Kind = "sha256") -> str | None:
    place = _place(stamp, kind)
    if place is None:
        return None
    try:
        handle = open_to_read(place, follow=False)
        try:
            text = os.read(handle, _LARGEST) if is_own(os.fstat(handle)) else b""
        finally:
            os.close(handle)
        fields = json.loads(text)
        digest = str(fields[kind])
        if text != _receipt(stamp, digest, kind):  # another version of the file, or damaged
            return None
        os.utime(place)  # those longest unused go first
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return digest


def _receipt(stamp: Stamp, sums: str, kind: Kind) -> bytes:
    """A receipt's bytes, with a sum of their own."""
    fields = {**stamp._asdict(), kind: sums}
    own = hashlib.sha256(json.dumps(fields).encode()).hexdigest()[:16]
    return json.dumps({**fields, "own": own}).encode()


def _keep(stamp: Stamp, sums: str, kind: Kind = "sha256") -> None:
    """Write a receipt, as far as possible: a cache that cannot be written to is no reason to stop."""
    place = _place(stamp, kind)
    if place is None:
        return
    with contextlib.suppress(OSError):
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".new-", dir=place.parent)
        try:
            with open(handle, "wb") as file:
                file.write(_receipt(stamp, sums, kind))
            rename(Path(temporary), place)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _bound(place.parent)


def _bound(folder: Path) -> None:
    """Remove what was unused longest, where there is too much."""
    with os.scandir(folder) as entries:
        found = [entry.path for entry in entries]
    if len(found) <= _SHARD:
        return
    ages = {}
    for path in found:
        with contextlib.suppress(OSError):  # another process was faster
            ages[path] = os.stat(path, follow_symlinks=False).st_mtime_ns
    for path in sorted(ages, key=lambda path: ages[path])[: len(ages) - _SHARD]:
        with contextlib.suppress(OSError):
            os.unlink(path)
