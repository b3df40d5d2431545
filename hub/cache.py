"""huggingface_hub's cache, so that what is fetched here others find, and the other way round.

``CACHE/models--org--name`` holds ``refs/REVISION`` (a commit), ``trees/COMMIT.json`` (the list of files),
``blobs/ETAG`` (contents) and ``snapshots/COMMIT/…`` (links to them).
https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..core.system_files import rename
from .names import COMMIT, HubName

_TREE_VERSION = 1


def cache_folder() -> Path:
    """Where it is: HF_HUB_CACHE, or ``hub`` in HF_HOME, as huggingface_hub reads them."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def storage(repository: str) -> Path:
    """The folder of a repository of models."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def snapshot(repository: str, commit: str) -> Path:
    """The folder with the files of a commit, which may be some of them."""
    return storage(repository) / "snapshots" / commit


def blob(repository: str, etag: str) -> Path:
    """The contents the Hub calls ``etag``."""
    return storage(repository) / "blobs" / etag


def lock_file(repository: str, etag: str) -> Path:
    """What huggingface_hub locks while it fetches these contents."""
    return cache_folder() / ".locks" / storage(repository).name / f"{etag}.lock"


def cached_commit(name: HubName) -> str | None:
    """The commit a revision was when the Hub was last asked; a commit is itself."""
    if name.revision is not None and COMMIT.fullmatch(name.revision):
        return name.revision if snapshot(name.repository, name.revision).is_dir() else None
    try:
        text = (storage(name.repository) / "refs" / (name.revision or "main")).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return text if COMMIT.fullmatch(text) else None


def write_ref(name: HubName, commit: str) -> None:
    """Note which commit a revision is, if the cache can be written to."""
    path = storage(name.repository) / "refs" / (name.revision or "main")
    with contextlib.suppress(OSError):
        if not path.is_file() or path.read_text("ascii") != commit:
            _write(path, commit)


def read_tree(repository: str, commit: str) -> dict[str, dict[str, Any]] | None:
    """The list of a commit's files, if it is kept: entries of ``trees/COMMIT.json`` by path."""
    try:
        content = json.loads((storage(repository) / "trees" / f"{commit}.json").read_bytes())
        if content["format_version"] != _TREE_VERSION:
            return None
        files = {str(path): dict(entry) for path, entry in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return files


def write_tree(repository: str, commit: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Keep the list of a commit's files, if the cache can be written to."""
    content = {"format_version": _TREE_VERSION, "files": {path: files[path] for path in sorted(files)}}
    with contextlib.suppress(OSError):
        _write(storage(repository) / "trees" / f"{commit}.json", json.dumps(content, indent=2))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cached_files(repository: str, commit: str) -> Iterator[tuple[str, int, str]]:
    """Path, bytes and what the cache calls the contents, of every file of a commit that is here."""
    folder = snapshot(repository, commit)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size, named_contents(path)


def named_contents(path: Path) -> str:
    """The name of the blob a file of a snapshot is a link to: a claim about its contents, no evidence.

    The first link counts: contents that came by Xet may lie behind a second one, in a store that names them
    by another hash.
    """
    try:
        return Path(os.readlink(path)).name
    except OSError:  # no link: a system without them
        return ""


def link(repository: str, commit: str, path: str, etag: str) -> None:
    """Give contents their place in the snapshot. Raises OSError."""
    place, contents = snapshot(repository, commit) / path, blob(repository, etag)
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{uuid.uuid4().hex[:8]}.tmp")
    try:
        try:
            os.symlink(os.path.relpath(contents, place.parent), temporary)
        except OSError:  # a file system without links: huggingface_hub copies, too
            shutil.copyfile(contents, temporary)
        rename(temporary, place)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
