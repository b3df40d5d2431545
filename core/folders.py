"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .claims import claimed_folder, locked_folder, temporary_beside
from .errors import OutputExists
from .files import explained
from .leftovers import sweep
from .system_files import rename, synced


def refuse_filled(path: Path, *, mark: str, force: bool) -> None:
    """Raise OutputExists unless ``path`` is free, an empty folder, or ``force`` may replace it.

    What may be replaced is a folder with a file called ``mark``, as those kconv has made have; no other is
    ever deleted.
    """
    above = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not above.is_dir():
        raise OutputExists(f"{above} is a file, expected a folder", hint="choose another -o")
    if above != path:
        return
    with explained(path):
        where = (
            "the folder you are in"
            if path.samefile(".")
            else "a mounted disk"
            if os.path.ismount(path)
            else ""
        )
        filled = any(path.iterdir())
    if where:  # a folder that appears whole takes a name, it does not move into another
        raise OutputExists(
            f"{path} is {where}, which cannot be replaced", hint="choose a folder inside it with -o"
        )
    if filled and not force:
        raise OutputExists(
            f"{path} is not empty", hint="choose another -o, or pass --force to replace what kconv made"
        )
    if filled and not (path / mark).is_file():
        raise OutputExists(
            f"{path} is not empty and has no {mark}: kconv did not make it and will not replace it",
            hint="choose another -o, or empty the folder",
        )


@contextlib.contextmanager
def atomic_folder(
    path: Path,
    *,
    mark: str,
    force: bool = False,
    kept: Path | None = None,
    keep: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[Path]:
    """Yield an empty folder beside ``path``; on success it takes that name, with all that lies in it.

    Its files are synced before. See ``refuse_filled`` for what ``mark`` and ``force`` mean. What killed runs
    have left beside it is removed first; a folder one was about to replace gets its name back. ``kept`` is
    the folder of a run that is gone, to go on with as it is; ``keep`` is asked whether it stays after a
    failure. Raises OutputExists and EnvironmentProblem.
    """
    path = path.resolve()
    sweep(path.parent)
    refuse_filled(path, mark=mark, force=force)
    made = [folder for folder in path.parents if not folder.exists()]
    temporary = kept or temporary_beside(path)
    old = temporary.with_suffix(".old")
    try:
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with claimed_folder(temporary, keep):
                yield temporary
                for file in temporary.rglob("*"):
                    synced(file)
                synced(temporary)
                refuse_filled(path, mark=mark, force=force)  # it may have been filled meanwhile
                _take_name(temporary, path, old)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: all went well
                folder.rmdir()


def _take_name(temporary: Path, path: Path, old: Path) -> None:
    """Rename ``temporary`` to ``path``; what stood there goes, unless that fails."""
    with locked_folder(path):
        try:
            if path.exists():
                rename(path, old)
            rename(temporary, path)
        finally:
            if old.exists() and not path.exists():
                rename(old, path)
            shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):  # all is there; some file systems sync no folders
        synced(path.parent)
