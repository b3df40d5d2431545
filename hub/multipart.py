"""Putting files into an object store in parts: an object is there when all of it is, or not at all.

The parts' borders follow from the size alone, which the plan knows before a byte is written. Every upload
that is begun is noted on this machine (upload_notes.py): what a killed run has left open in the store, where
it would be paid for unseen, ``--resume`` goes on with (resumed_uploads.py), and else the next run with an
object store or ``kconv clean`` ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..core.errors import EnvironmentProblem, KconvError, OutputExists, UsageError
from ..core.progress import Progress, silent
from .object_names import ObjectPlace
from .object_store import NoSuchObject, call
from .upload_notes import Note, OpenUpload, left_open

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


def refuse_objects(
    places: Sequence[ObjectPlace], but: Mapping[ObjectPlace, str] = MappingProxyType({})
) -> None:
    """Raise OutputExists where there is an object already, ``but`` for those with such an ETag."""
    for place in places:
        try:
            there = call("head_object", place)
        except NoSuchObject:
            continue
        if place in but and there.get("ETag") == but[place]:
            continue
        raise OutputExists(
            f"{place} already exists", hint="choose another -o, or pass --force to overwrite it"
        )


@dataclass(frozen=True)
class Upload:
    """An upload that was begun: to where, under which number, and where its parts begin and end.

    ``there`` are the store's tags of parts that an ended run has sent, by their place in the list.
    """

    place: ObjectPlace
    number: str
    borders: Sequence[tuple[int, int]]
    note: Note
    there: Mapping[int, str] = field(default_factory=dict)


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
    for upload, tags in uploads:
        upload.note.completing(_tag_of_all(tags))
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


def is_tag_of(tag: str, data: bytes) -> bool:
    """Whether the store's tag of a part says that it has these bytes; one that is no MD5 does not."""
    return tag.strip('"') == hashlib.md5(data, usedforsecurity=False).hexdigest()


def _tag_of_all(tags: Sequence[str]) -> str:
    """The ETag that S3 gives an object in parts: that of their MD5s, and how many there are."""
    try:
        sums = b"".join(bytes.fromhex(tag.strip('"')) for tag in tags)
    except ValueError:  # a store with tags of another kind: nothing is known of the object's
        return ""
    return f'"{hashlib.md5(sums, usedforsecurity=False).hexdigest()}-{len(tags)}"'


def _complete(upload: Upload, tags: Sequence[str]) -> None:
    parts = [{"PartNumber": i + 1, "ETag": tag} for i, tag in enumerate(tags)]
    call("complete_multipart_upload", upload.place, UploadId=upload.number, MultipartUpload={"Parts": parts})
    size = upload.borders[-1][1]
    there = call("head_object", upload.place)["ContentLength"]
    if there != size:
        raise EnvironmentProblem(f"{upload.place} has {there} bytes, expected {size}", hint="run it again")


@contextlib.contextmanager
def begun_upload(
    place: ObjectPlace,
    borders: Sequence[tuple[int, int]],
    *,
    content: Mapping[str, Any] | None = None,
    left: tuple[OpenUpload, Mapping[int, str]] | None = None,
) -> Iterator[Upload]:
    """Begin an upload, noted before and after; whatever goes wrong while it lasts ends it in the store.

    ``content`` is noted for those who would go on with it. ``left`` is what an ended run has begun, with the
    tags of its parts: then that is gone on with.
    """
    with Note(place, None if left is None else left[0].note) as note:
        there: Mapping[int, str] = {}
        if left is None:
            number = str(call("create_multipart_upload", place)["UploadId"])
        else:
            number, there = left[0].number, left[1]
        try:
            if left is None:
                note.write(number, content)
            yield Upload(place, number, borders, note, there)
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


def end_left_open(
    announce: Callable[[str], None] = lambda text: None, *, but: Collection[OpenUpload] = ()
) -> list[OpenUpload]:
    """End what killed runs have left open, ``but`` for some, as far as possible; returns what was ended."""
    ended = []
    for each in left_open():
        if each in but:
            continue
        with contextlib.suppress(KconvError, OSError):
            abort(each.place, each.number)
            each.note.unlink(missing_ok=True)
            ended.append(each)
    if ended:
        names = ", ".join(dict.fromkeys(str(each.place) for each in ended[:5]))
        announce(f"ended what killed runs had left open in the object store: uploads of {names}")
    return ended
