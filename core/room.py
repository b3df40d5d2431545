"""Whether files fit where they are to be, asked before anything is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from .errors import EnvironmentProblem
from .files import explained, nearest_existing


class NoRoom(EnvironmentProblem):
    """Files do not fit on the disk where they are to be."""


def check_room(files: Iterable[tuple[Path, int]]) -> None:
    """Raise NoRoom unless files of so many bytes fit where they are to be."""
    needed: dict[Path, int] = {}
    for path, size in files:
        folder = nearest_existing(path.absolute().parent)
        needed[folder] = needed.get(folder, 0) + size
    for folder, size in needed.items():
        with explained(folder):
            free = shutil.disk_usage(folder).free
        if size > free:
            raise NoRoom(
                f"no space left: {folder} has {free / 1e6:,.1f} MB free, {size / 1e6:,.1f} MB are needed",
                hint="free some space or write to another disk with -o",
            )
