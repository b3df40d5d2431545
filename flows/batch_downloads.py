"""What a batch fetches from the Hub, and taking away again what it, and nobody else, has fetched.

A repository's files lie in huggingface_hub's cache (``hub/cache.py``). Those that were there before a batch
came stay; the others go when the last conversion of their source is done.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..hub.cache import blob, snapshot, storage
from ..hub.names import COMMIT, is_repository
from ..hub.source import HubFile, HubSource, is_safe
from .batch_journal import Journal

_ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Download:
    """The files of a source that were not in the cache: path, etag and bytes of each.

    ``is_new``: the cache had nothing at all of the repository.
    """

    repository: str
    commit: str
    files: tuple[tuple[str, str, int], ...]
    is_new: bool

    @property
    def bytes(self) -> int:
        """What all of them take."""
        return sum(size for _, _, size in self.files)

    def only(self, paths: Iterable[str]) -> Download:
        """Of these files what is in it."""
        wanted = frozenset(paths)
        return replace(self, files=tuple(file for file in self.files if file[0] in wanted))

    def missing_bytes(self) -> int:
        """What is still to be fetched."""
        return sum(size for _, etag, size in self.files if not blob(self.repository, etag).exists())

    def merged(self, other: Download) -> Download:
        """With what another conversion of the same source, or an earlier run, found missing."""
        files = dict.fromkeys((*self.files, *other.files))
        return replace(self, files=tuple(files), is_new=self.is_new or other.is_new)

    def to_json(self) -> dict[str, Any]:
        """For the journal."""
        files = [list(file) for file in self.files]
        return {
            "repository": self.repository,
            "revision": self.commit,
            "files": files,
            "is_new": self.is_new,
        }


def absent(source: HubSource) -> Download:
    """Which files of a source are not in the cache; asked before anything of it is fetched."""
    there = storage(source.repository) / "snapshots"
    files = [each for each in source.files if not _is_here(source, each)]
    listed = tuple((each.path, each.etag, each.size) for each in files)
    return Download(source.repository, source.commit, listed, not there.exists())


def _is_here(source: HubSource, file: HubFile) -> bool:
    place = snapshot(source.repository, source.commit) / file.path
    return place.exists() or blob(source.repository, file.etag).exists()


def of_journal(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Download]:
    """What earlier runs have fetched, or begun to, and not deleted, by repository and commit."""
    left: dict[tuple[str, str], Download] = {}
    for record in records:
        name = (record.get("repository"), record.get("revision"))
        if record["event"] in ("deleted", "kept"):
            left.pop(name, None)  # type: ignore[arg-type]
        elif record["event"] == "fetching" and _is_sound(record):
            files = tuple((path, etag, size) for path, etag, size in record["files"])
            found = Download(record["repository"], record["revision"], files, record["is_new"])
            before = left.get((found.repository, found.commit))
            left[found.repository, found.commit] = found if before is None else before.merged(found)
    return left


def _is_sound(record: Mapping[str, Any]) -> bool:
    """Whether it names files of the cache: what stands in a journal is going to be deleted."""
    return (
        is_repository(record["repository"])
        and COMMIT.fullmatch(record["revision"]) is not None
        and all(
            isinstance(file, list)
            and [type(each) for each in file] == [str, str, int]
            and is_safe(file[0])
            and _ETAG.fullmatch(file[1])
            for file in record["files"]
        )
    )


class Downloads:
    """What a batch fetches, by the source's name as the jobs give it.

    ``left`` is what earlier runs of these jobs have fetched and not deleted. With ``keep`` all of it stays.
    """

    def __init__(self, left: Mapping[tuple[str, str], Download], *, keep: bool) -> None:
        self._left, self._keep = left, keep
        self._of: dict[str, Download] = {}
        self._commits: dict[str, str] = {}
        self._begun: set[str] = set()

    def note(self, source: str, commit: str | None, download: Download | None) -> None:
        """Take in what planning a conversion of that source has found."""
        if commit is None:
            return
        commit = self._commits.setdefault(source, commit)  # if the branch has moved meanwhile, the first
        known = [self._of.get(source), download, None if self._keep else self._left.get(_key(source, commit))]
        found = [each for each in known if each is not None and each.commit == commit]
        for each in found:
            before = self._of.get(source, each)
            self._of[source] = before.merged(each)

    def commit_of(self, source: str) -> str | None:
        """The commit that all conversions of a source take; None for a folder."""
        return self._commits.get(source)

    def to_fetch(self, source: str) -> int:
        """Bytes that beginning with a source takes."""
        return self._of[source].missing_bytes() if source in self._of and source not in self._begun else 0

    @property
    def sources(self) -> frozenset[str]:
        """Those of which something was fetched, or is to be."""
        return frozenset(self._of)

    @property
    def held(self) -> int:
        """Bytes of what was begun to be fetched and not deleted."""
        return sum(self._of[source].bytes for source in self._begun)

    def begin(self, source: str, journal: Journal) -> None:
        """Write down what is going to be fetched."""
        if source in self._of and source not in self._begun:
            if not self._keep:
                journal.append("fetching", **self._of[source].to_json())
            self._begun.add(source)

    def end(self, source: str, journal: Journal) -> int:
        """Nothing needs the source any more; the bytes that frees."""
        download = self._of.pop(source, None)
        self._begun.discard(source)
        if download is None or (self._keep and not download.files):
            return 0
        if self._keep:
            journal.append("kept", repository=download.repository, revision=download.commit)
            return 0
        freed = delete(download)
        if download.files:
            journal.append("deleted", repository=download.repository, revision=download.commit, bytes=freed)
        return freed

    def discard(self) -> None:
        """After a plan that is not carried out: nothing it has fetched stays."""
        for download in self._of.values():
            if (download.repository, download.commit) not in self._left:
                delete(download)


def _key(source: str, commit: str) -> tuple[str, str]:
    return source.partition("@")[0], commit


def delete(download: Download) -> int:
    """Delete what was fetched, as far as no other revision in the cache uses it; the bytes that frees."""
    place, freed = storage(download.repository), 0
    folder = snapshot(download.repository, download.commit)
    for path, _, _ in download.files:
        with contextlib.suppress(OSError):
            (folder / path).unlink()
    used = _used(place)
    for _, etag, _ in download.files:
        contents = blob(download.repository, etag)
        for each in (contents, contents.with_name(f"{etag}.kconv.incomplete")):
            if each.name not in used:
                with contextlib.suppress(OSError):
                    size = each.lstat().st_size
                    each.unlink()
                    freed += size
    _remove_empty(folder)
    if download.is_new and not _holds_files(place / "snapshots") and not _holds_files(place / "blobs"):
        shutil.rmtree(place, ignore_errors=True)
        locks = place.parent / ".locks" / place.name
        shutil.rmtree(locks, ignore_errors=True)
    return freed


def _used(place: Path) -> set[str]:
    """Names of contents to which the folders of revisions link."""
    names = set()
    for folder, _, files in os.walk(place / "snapshots"):
        for name in files:
            with contextlib.suppress(OSError):
                names.add(os.path.basename(os.readlink(os.path.join(folder, name))))
    return names


def _remove_empty(folder: Path) -> None:
    for place, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(place)


def _holds_files(folder: Path) -> bool:
    return any(files for _, _, files in os.walk(folder))
