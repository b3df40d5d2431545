"""Notes of uploads that are open in an object store, so that whatever ends a run, another one knows of them.

A note holds the place, the store's number of the upload and the store's address, and of a conversion what
decides every byte of the file, so that one like it can go on with the parts that are there. It is locked as
long as its process lives.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..core.errors import EnvironmentProblem, OutputExists
from ..core.machine import cache_folder
from ..core.system_files import append, lock, open_to_write, user_mark
from .object_names import ObjectPlace

_LARGEST = 16 << 20  # bytes of a note


def journal_folder() -> Path:
    """Where uploads are noted."""
    above = cache_folder()
    return (Path(tempfile.gettempdir()) / f"kconv-{user_mark()}" if above is None else above) / "uploads"


class Note:
    """The note of one upload, locked while this process lives and removed when the upload is over.

    ``kept`` is that of an ended run, whose upload is gone on with. A context manager; entering it raises
    EnvironmentProblem, and OutputExists where another run goes on with it already.
    """

    def __init__(self, place: ObjectPlace, kept: Path | None = None) -> None:
        self._place, self.stays, self._new = place, False, kept is None
        self._path = kept or journal_folder() / f"{os.getpid()}-{os.urandom(6).hex()}.json"

    def __enter__(self) -> Note:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._handle = open_to_write(self._path, new=self._new, append=True, mode=0o600)
            lock(self._handle, wait=self._new)
        except BlockingIOError as error:
            raise OutputExists(
                f"another run is still sending {self._place}", hint="wait for it, or end it and try again"
            ) from error
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot note in {self._path.parent} what is uploaded: {error.strerror or error}",
                hint="free some space there, or set XDG_CACHE_HOME to another folder",
            ) from error
        return self

    def write(self, number: str, content: Mapping[str, Any] | None) -> None:
        """Note the upload's number, on the disk before the first part is sent."""
        said = {"bucket": self._place.bucket, "key": self._place.key, "upload": number, "store": _store()}
        self._say({**said, "content": content})

    def completing(self, tag: str) -> None:
        """Note that an object with that ETag is going to be made of the upload."""
        self._say({"completing": tag})

    def _say(self, said: Mapping[str, Any]) -> None:
        append(self._handle, json.dumps(said).encode() + b"\n")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.stays:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._handle)


def _store() -> str:
    """The address of the store, without what may be secret in it; empty for AWS."""
    address = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    return f"{address.scheme}://{address.hostname}:{address.port}" if address.hostname else ""


@dataclass(frozen=True)
class OpenUpload:
    """An upload a run that is gone has left open in a store.

    ``content`` says what the file was to become, None where nobody can go on with it; ``completing`` is the
    ETag of the object that was about to be made of it.
    """

    note: Path
    place: ObjectPlace
    number: str
    content: Mapping[str, Any] | None = field(default=None, compare=False)
    completing: str | None = None


def left_open() -> list[OpenUpload]:
    """Those of this user on this machine, at the store the environment names now."""
    found = []
    for note in sorted(journal_folder().glob("*.json")) if journal_folder().is_dir() else []:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), note.open("rb+") as opened:
            lock(opened.fileno())  # BlockingIOError: it is in use
            lines = opened.read(_LARGEST).splitlines()
            if not lines:  # killed before the upload was begun
                note.unlink()
                continue
            said = json.loads(lines[0])
            if said["store"] == _store():
                place = ObjectPlace(str(said["bucket"]), str(said["key"]))
                content = said.get("content")
                content = content if isinstance(content, dict) else None
                tag = _completing(lines[1:])
                found.append(OpenUpload(note, place, str(said["upload"]), content, tag))
    return found


def _completing(lines: list[bytes]) -> str | None:
    """What the last whole line says; a torn one says nothing."""
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["completing"])
    return None
