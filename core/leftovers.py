"""What runs of kconv that were killed have left: unfinished files and temporary folders.

A lock distinguishes them from those of a run at work (``core/claims.py``). Every run takes away what lies in
the folders it writes to; ``kconv clean`` does that and no more. Unfinished files with a journal stay for
``--resume`` (``core/kept.py``), until ``kconv clean`` or a run that makes the same files anew. Some file
systems have no locks, and one machine may not see those of another that shares the disk: there only age
decides, as for files of versions of kconv that held no locks, which only ``kconv clean`` removes.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from . import progress
from .claims import NAMES, is_of_this_machine, is_shortened
from .kept import Kept, all_kept, kept_for
from .system_files import (
    bytes_on_disk,
    is_own,
    is_same,
    lock,
    open_folder,
    open_to_write,
    release,
    rename,
    status_of,
)

OLD_AGE = 24 * 3600
"""Seconds without a change after which something without a lock counts as left."""

GATHERING = ".gathering"
"""The end of the names of folders of what has been measured."""

GATHERED = ("asked.json", "pass.json")
"""Files by one of which such a folder is known."""

State = Literal["left", "in use", "unknown"]

# What kconv called such files while it did not lock them.
_BEFORE_LOCKS = re.compile(
    r"\..+\.[0-9a-f]{16}\.partial|kconv-vocab-[a-z0-9_]{8}|\.kconv-compare-[a-z0-9_]{8}", re.DOTALL
)


@dataclass(frozen=True)
class Leftover:
    """A temporary file or folder of kconv's.

    ``bytes`` are those its removal frees. It is ``left`` by a run that is gone, ``in use``, or ``unknown``:
    without a reliable lock, and changed within a day. ``kept``: a run with ``--resume`` can go on with it.
    """

    path: Path
    bytes: int
    state: State
    kept: bool = False


def find_leftovers(folder: Path) -> list[Leftover]:
    """Temporary files and folders of kconv's that lie in ``folder``, by name; not in folders below it.

    Only those of this user's. Raises OSError where the folder cannot be listed.
    """
    leftovers, kept = [], _kept(folder)
    for path in _candidates(folder, unlocked=True):
        with _locked(path) as state:
            if state is not None:
                goes_on = path in kept or _is_gathering(path)
                leftovers.append(Leftover(path, _size(path), state, goes_on))
    return leftovers


def _kept(folder: Path) -> set[Path]:
    """Journals and their unfinished files."""
    return {path for kept in all_kept(folder) for path in (kept.folder, *kept.partials)}


def remove(path: Path) -> Leftover | None:
    """Remove one that is left; None if it is not, or not any more. Raises OSError.

    A folder that was about to be replaced gets its name back, if nothing has taken that meanwhile.
    """
    with _locked(path) as state:
        if state != "left":
            return None
        known = Leftover(path, _size(path), state)
        match = NAMES.fullmatch(path.name)
        if match is not None and match["end"] == "old":
            before = path.with_name(match["of"])
            if not os.path.lexists(before):
                if is_shortened(match["of"]):
                    return None
                rename(path, before)
                return known
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
        return known


def sweep(folder: Path) -> None:
    """Remove what killed runs have left in ``folder``, as far as possible, and call ``on_removal``."""
    take_back(folder)
    with contextlib.suppress(OSError):
        kept = _kept(folder)
        _remove_all(folder, [path for path in _candidates(folder, unlocked=False) if path not in kept])


def discard(paths: Sequence[Path]) -> None:
    """Remove what was kept of runs that were to make any of these files, which lie in one folder."""
    take_back(paths[0].parent)
    for kept in kept_for(paths):
        partials = kept.partials
        _remove_all(kept.folder.parent, partials, kept=True)
        with contextlib.suppress(OSError):
            remove(kept.folder)


def _remove_all(folder: Path, paths: Sequence[Path], *, kept: bool = False) -> None:
    removed = []
    for path in paths:
        with contextlib.suppress(OSError):
            gone = remove(path)
            if gone is not None:
                removed.append(replace(gone, kept=kept))
    if removed:
        progress.on_removal(folder, removed)


def tell_kept(kept: Kept) -> None:
    """Call ``on_keeping`` with the unfinished files of a journal."""
    partials = [Leftover(path, _size(path), "left", kept=True) for path in kept.partials]
    if partials:
        progress.on_keeping(kept.folder.parent, partials)


def take_back(folder: Path) -> None:
    """Take back names that killed runs gave to some of the files that belong together, not to all of them."""
    with contextlib.suppress(OSError):
        for group in _groups(folder):
            with contextlib.suppress(OSError):
                _take_back(group)


def _groups(folder: Path) -> list[dict[str, dict[Path, Path]]]:
    """For each mark the temporary files, ``partial`` and ``old``, and the names they are to have."""
    groups: dict[str, dict[str, dict[Path, Path]]] = {}
    for path in _candidates(folder, unlocked=False):
        match = NAMES.fullmatch(path.name)
        if match is not None and match["of"] is not None and not path.is_dir():
            if is_shortened(match["of"]):
                continue
            ends = groups.setdefault(match["mark"], {"partial": {}, "old": {}, "journal": {}})
            ends[match["end"]][path] = path.with_name(match["of"])
    return list(groups.values())


def _take_back(group: dict[str, dict[Path, Path]]) -> None:
    """Take back the names of one group, unless all its files have theirs.

    Of a file that has its name, its temporary name is still there, too, or else what it replaced.
    """
    with contextlib.ExitStack() as stack:
        for path in group["partial"]:
            if stack.enter_context(_locked(path)) != "left":
                return
        ours = [final for path, final in group["partial"].items() if _is_one(path, final)]
        if len(ours) == len(group["partial"]):  # all have their names
            return
        for final in ours:
            final.unlink()
        for path, final in group["old"].items():
            rename(path, final)


def _is_one(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def _candidates(folder: Path, *, unlocked: bool) -> list[Path]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    return [
        folder / name
        for name in sorted(names)
        if NAMES.fullmatch(name)
        or (unlocked and (_BEFORE_LOCKS.fullmatch(name) or _is_gathering(folder / name)))
    ]


def _is_gathering(path: Path) -> bool:
    """Whether it is a folder of what has been measured (flows/kept_work.py), whose name has no mark."""
    return path.name.endswith(GATHERING) and any((path / name).is_file() for name in GATHERED)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[State | None]:
    """Lock what is at a path, if no other process does; None if gone, no file or folder, or not ours."""
    try:
        if stat.S_ISDIR(os.stat(path, follow_symlinks=False).st_mode):
            handle = open_folder(path)
        else:  # a lock over NFS needs a file open for writing
            handle = open_to_write(path, follow=False)
    except OSError:
        yield None
        return
    try:
        yield _state(handle, path)
    finally:
        release(handle)


def _state(handle: int, path: Path) -> State | None:
    status = status_of(handle)
    if not is_own(status) or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        return None
    match = NAMES.fullmatch(path.name)
    locked = match is not None and is_of_this_machine(match["mark"])
    try:
        lock(handle)
    except BlockingIOError:
        return "in use"
    except OSError:  # a file system without locks
        locked = False
    if not is_same(handle, path):
        return None
    if locked:
        return "left"
    old = time.time() - max(each.st_mtime for each in _all(path)) > OLD_AGE
    return "left" if old and not path.name.endswith(".old") else "unknown"


def _all(path: Path) -> Iterator[os.stat_result]:
    """What is known of a file, or of a folder and all that is in it."""
    yield os.stat(path, follow_symlinks=False)
    for above, folders, files in os.walk(path):
        for name in (*folders, *files):
            with contextlib.suppress(OSError):
                yield os.stat(os.path.join(above, name), follow_symlinks=False)


def _size(path: Path) -> int:
    """Bytes on the disk; none for a file that has another name, too."""
    return sum(bytes_on_disk(each) for each in _all(path) if stat.S_ISDIR(each.st_mode) or each.st_nlink == 1)
