"""Unfinished files that are worth something: what a run was ended at, with a journal of what is done of it.

Beside the files lies a folder, ``.NAME.kconv-MARK.journal``, with a file ``journal.json`` that names them and
says what they were to become (converters/journal.py). They stay for ``--resume`` until a run makes the same
files anew, or ``kconv clean`` removes them; without such a folder unfinished files go with the next run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .claims import NAMES, new_mark, temporary_beside
from .system_files import is_own, open_to_read

CONTENT = "journal.json"
_LIMIT = 64 << 20  # bytes; a journal of 1,000 files has 0.2 MB


@dataclass(frozen=True)
class Kept:
    """A journal's ``folder``, what it says, and ``files``: temporary names by the names they are to have."""

    folder: Path
    content: Mapping[str, Any]
    files: Mapping[str, str]

    def temporary(self, path: Path) -> Path | None:
        """The unfinished file for ``path``, wherever that is by now; None if it is not one of these."""
        name = self.files.get(path.name)
        return None if name is None else self.folder.with_name(name)

    @property
    def partials(self) -> list[Path]:
        """The unfinished files that are there; one that has its final name, too, does not count."""
        found = []
        for name, temporary in self.files.items():
            path = self.folder.with_name(temporary)
            if path.exists() and not _is_one(path, self.folder.with_name(name)):
                found.append(path)
        return found


def journal_beside(path: Path) -> Path:
    """An unused name for a journal's folder in the folder of ``path``."""
    return temporary_beside(path, "journal", mark=new_mark())


def read_kept(folder: Path) -> Kept | None:
    """What a journal's folder holds; None where it says nothing that could be relied on."""
    try:
        handle = open_to_read(folder / CONTENT, follow=False)
        with open(handle, "rb") as file:
            if not is_own(os.fstat(handle)):
                return None
            text = file.read(_LIMIT)
        content = json.loads(text)
        files = content["files"]
        names = [*files, *files.values()]
        sound = all(map(_is_name, names))
        if not sound or not all(NAMES.fullmatch(name) for name in files.values()):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    return Kept(folder, content, files)


def all_kept(folder: Path) -> list[Kept]:
    """All that lie in a folder, the oldest first; none where it cannot be listed."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = []
    for name in names:
        match = NAMES.fullmatch(name)
        if match is not None and match["end"] == "journal":
            kept = read_kept(folder / name)
            if kept is not None:
                found.append((_changed(kept.folder), kept))
    return [kept for _, kept in sorted(found, key=lambda pair: pair[0])]


def kept_for(paths: Sequence[Path]) -> list[Kept]:
    """Those that were to become any of ``paths``, which lie in one folder; the oldest first."""
    names = {path.name for path in paths}
    return [kept for kept in all_kept(paths[0].parent) if names & kept.files.keys()]


def _is_name(name: object) -> bool:
    """Whether it can be that of a file in the folder at hand."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\0")


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _is_one(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
