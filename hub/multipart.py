"""Putting files into an object store in parts: an object is there when all of it is, or not at all.

The parts' borders follow from the size alone, which the plan knows before a byte is written. Every upload
that is begun is noted in a journal of this machine, with a lock as long as its process lives: what a killed
run has left open in the store, where it would be paid for unseen, the next run with an object store or
``kconv clean`` ends. The journal holds the place, the store's number of the upload and the store's address.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..core.errors import EnvironmentProblem, KconvError, OutputExists, UsageError
from ..core.machine import cache_folder
from ..core.progress import Progress, silent
from ..core.system_files import lock, open_to_write, sync, user_mark, write_at
from .object_names import ObjectPlace
from .object_store import NoSuchObject, call

SMALLEST, LARGEST, MOST = 5 << 20, 5 << 30, 10_000
"""Bytes a part may have (the last may have fewer), and how many parts there may be: S3's limits."""
USUAL = 32 << 20
"""Bytes of a part, unless there would be too many."""
AT_A_TIME = 3
"""Parts that are sent side by side."""
_MIB = 1 << 20


def part_borders(size: int, usual: int = USUAL) -> list[tuple[int, int]]:
    """Where the parts of an object of ``size`` bytes begin and end. Raises UsageError for what is too large.

    All but the last have the same length, a multiple of a mebibyte.
    """
    mebibytes = math.ceil(math.ceil(size / MOST) / _MIB)
    length = max(usual, SMALLEST, mebibytes * _MIB)
    if length > LARGEST:
        raise UsageError(
            f"an object of {size} bytes is larger than {MOST} parts of {LARGEST} bytes",
            hint="pass --split-max-size 1000G",
        )
    return [(start, min(start + length, size)) for start in range(0, max(size, 1), length)]


def refuse_objects(places: Sequence[ObjectPlace]) -> None:
    """Raise OutputExists where there is an object already."""
    for place in places:
        try:
            call("head_object", place)
        except NoSuchObject:
            continue
        raise OutputExists(
            f"{place} already exists", hint="choose another -o, or pass --force to overwrite it"
        )


@dataclass(frozen=True)
class Upload:
    """An upload that was begun: to where, under which number, and where its parts begin and end."""

    place: ObjectPlace
    number: str
    borders: Sequence[tuple[int, int]]


Sent = tuple[Upload, Sequence[str]]
"""An upload whose parts are all in the store, and the store's tags of them."""


def put_files(
    files: Sequence[tuple[Path, ObjectPlace]],
    progress: Progress = silent,
    *,
    replacing: bool = False,
    before: Sequence[Sent] = (),
) -> None:
    """Put files into the store; their objects appear when all parts of all are there, in this order.

    Those of the uploads sent ``before`` come first. Calls ``progress("upload", bytes done, bytes in all)``.
    Where it fails or is interrupted, no part of ``files`` stays, nor an object, unless it is ``replacing``
    others. Raises HubRefusal, EnvironmentProblem.
    """
    sizes = [path.stat().st_size for path, _ in files]
    borders = [part_borders(size) for size in sizes]
    done, total = 0, sum(sizes)
    with contextlib.ExitStack() as stack:
        begun = [
            stack.enter_context(begun_upload(place, each))
            for (_, place), each in zip(files, borders, strict=True)
        ]
        pool = stack.enter_context(ThreadPoolExecutor(AT_A_TIME))
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        sent = [
            [pool.submit(_send_of_file, path, each, i) for i in range(len(each.borders))]
            for (path, _), each in zip(files, begun, strict=True)
        ]
        tags: list[list[str]] = [[] for _ in begun]
        for upload, futures, own in zip(begun, sent, tags, strict=True):
            for future, (start, stop) in zip(futures, upload.borders, strict=True):
                own.append(future.result())
                done += stop - start
                progress("upload", done, total)
        _complete_all([*before, *zip(begun, tags, strict=True)], replacing=replacing)


def _complete_all(uploads: Sequence[Sent], *, replacing: bool) -> None:
    """Make objects of all uploads, or, unless ``replacing``, of none."""
    complete: list[ObjectPlace] = []
    try:
        for upload, tags in uploads:
            complete.append(upload.place)  # before it is: the answer may be lost
            _complete(upload, tags)
    except BaseException:
        for place in () if replacing else complete:
            with contextlib.suppress(KconvError):
                call("delete_object", place)
        raise


def _send_of_file(path: Path, upload: Upload, index: int) -> str:
    """Send one part of a file; returns the store's tag of it."""
    start, stop = upload.borders[index]
    with path.open("rb") as opened:
        opened.seek(start)
        data = opened.read(stop - start)
    if len(data) != stop - start:
        raise EnvironmentProblem(
            f"{path} ends after {start + len(data)} bytes, expected {upload.borders[-1][1]}",
            hint="do not change the files meanwhile",
        )
    return send_part(upload, index, data)


def send_part(upload: Upload, index: int, data: bytes) -> str:
    """Send the bytes of one part; returns the store's tag of it. Raises as ``call`` does."""
    sums = hashlib.md5(data, usedforsecurity=False)
    answer = call("upload_part", upload.place, UploadId=upload.number, PartNumber=index + 1, Body=data)
    tag = str(answer["ETag"])
    plain = tag.strip('"')
    if len(plain) == 32 and "SSEKMSKeyId" not in answer and plain != sums.hexdigest():
        raise EnvironmentProblem(
            f"part {index + 1} of {upload.place} was damaged on the way", hint="run it again"
        )
    return tag


def _complete(upload: Upload, tags: Sequence[str]) -> None:
    parts = [{"PartNumber": i + 1, "ETag": tag} for i, tag in enumerate(tags)]
    call("complete_multipart_upload", upload.place, UploadId=upload.number, MultipartUpload={"Parts": parts})
    size = upload.borders[-1][1]
    there = call("head_object", upload.place)["ContentLength"]
    if there != size:
        raise EnvironmentProblem(f"{upload.place} has {there} bytes, expected {size}", hint="run it again")


@contextlib.contextmanager
def begun_upload(place: ObjectPlace, borders: Sequence[tuple[int, int]]) -> Iterator[Upload]:
    """Begin an upload, noted before and after; whatever goes wrong while it lasts ends it in the store."""
    with _Note(place) as note:
        number = str(call("create_multipart_upload", place)["UploadId"])
        note.write(number)
        try:
            yield Upload(place, number, borders)
        except BaseException:
            try:
                abort(place, number)
            except KconvError:  # the note stays for the next run
                note.stays = True
            raise


def abort(place: ObjectPlace, number: str) -> None:
    """End an upload that shall not become an object, or has already. Raises as ``call`` does."""
    with contextlib.suppress(NoSuchObject):
        call("abort_multipart_upload", place, UploadId=number)


def journal_folder() -> Path:
    """Where uploads are noted."""
    above = cache_folder()
    return (Path(tempfile.gettempdir()) / f"kconv-{user_mark()}" if above is None else above) / "uploads"


class _Note:
    """The note of one upload, locked while this process lives and removed when the upload is over."""

    def __init__(self, place: ObjectPlace) -> None:
        self._place, self.stays = place, False
        self._path = journal_folder() / f"{os.getpid()}-{os.urandom(6).hex()}.json"

    def __enter__(self) -> _Note:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._handle = open_to_write(self._path, new=True, mode=0o600)
            lock(self._handle, wait=True)
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot note in {self._path.parent} what is uploaded: {error.strerror or error}",
                hint="free some space there, or set XDG_CACHE_HOME to another folder",
            ) from error
        return self

    def write(self, number: str) -> None:
        """Note the upload's number, on the disk before the first part is sent."""
        said = {"bucket": self._place.bucket, "key": self._place.key, "upload": number, "store": _store()}
        write_at(self._handle, json.dumps(said).encode(), 0)
        sync(self._handle)

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
    """An upload a run that is gone has left open in a store."""

    note: Path
    place: ObjectPlace
    number: str


def left_open() -> list[OpenUpload]:
    """Those of this user on this machine, at the store the environment names now."""
    found = []
    for note in sorted(journal_folder().glob("*.json")) if journal_folder().is_dir() else []:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError), note.open("rb+") as opened:
            lock(opened.fileno())  # BlockingIOError: it is in use
            text = opened.read(1 << 16)
            if not text:  # killed before the upload was begun
                note.unlink()
                continue
            said = json.loads(text)
            if said["store"] == _store():
                place = ObjectPlace(str(said["bucket"]), str(said["key"]))
                found.append(OpenUpload(note, place, str(said["upload"])))
    return found


def end_left_open(announce: Callable[[str], None] = lambda text: None) -> list[OpenUpload]:
    """End what killed runs have left open, as far as possible; returns what was ended."""
    ended = []
    for each in left_open():
        with contextlib.suppress(KconvError, OSError):
            abort(each.place, each.number)
            each.note.unlink(missing_ok=True)
            ended.append(each)
    if ended:
        names = ", ".join(dict.fromkeys(str(each.place) for each in ended[:5]))
        announce(f"ended what killed runs had left open in the object store: uploads of {names}")
    return ended
