"""Checkpoints in object stores: ``s3://bucket/prefix``, by s3fs, with the credentials all tools use.

What AWS's own tools read is read (environment, profiles, roles, AWS_ENDPOINT_URL for other stores); none of
it goes into messages, manifests or journals. An object is held to its ETag by each request (If-Match), so a
range of an object that was replaced is refused by the store itself.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PosixPath
from typing import Any

from ..core.elsewhere import Elsewhere
from ..core.errors import CheckpointError, EnvironmentProblem, HubRefusal, KconvError
from ..core.files import explained as written
from ..core.input_files import is_plain_name
from ..core.weight_files import find_weights
from .object_names import SCHEME, ObjectPlace
from .stream import StreamedFile, WeightStream

_SMALL = re.compile(r".*\.(json|txt|model|jinja|md)|(LICEN[SC]E|COPYING|NOTICE)[^/]*")
_LARGEST = 64 << 20  # bytes of a file that is no weights
_TRIES = 4  # without a byte more; s3fs tries each request several times itself
_CHUNK = 1 << 18


class NoSuchObject(HubRefusal):
    """There is nothing of that name in the store."""


class ObjectReplaced(HubRefusal):
    """An object is not, or not any more, the one it was when it was listed."""


@functools.cache
def file_system() -> Any:
    """The one s3fs of this process. Raises EnvironmentProblem where it is not installed."""
    try:
        import s3fs
    except ImportError as error:
        raise EnvironmentProblem(
            "s3fs is not installed; it is needed to read and write s3:// addresses",
            hint="pip install 'kconv[s3]'",
        ) from error
    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


def call(operation: str, place: ObjectPlace, **more: Any) -> Any:
    """One request to the store about an object, named as boto3 names it. Raises as ``explained`` says."""
    with explained(place):
        return file_system().call_s3(operation, Bucket=place.bucket, Key=place.key, **more)


@contextlib.contextmanager
def explained(place: ObjectPlace) -> Iterator[None]:
    """Turn what s3fs and botocore raise into HubRefusal or EnvironmentProblem.

    Of the first kind are NoSuchObject, ObjectReplaced, where If-Match was sent, and want of access.
    """
    try:
        yield
    except (KconvError, InterruptedError):
        raise
    except FileNotFoundError:
        raise NoSuchObject(
            f"{place} does not exist", hint="check bucket and key: aws s3 ls, or s3fs.S3FileSystem().ls"
        ) from None
    except PermissionError as error:
        raise HubRefusal(
            f"the object store does not allow access to {place}: {_short(error)}",
            hint="check the credentials (aws sts get-caller-identity) and what they may do",
        ) from None
    except Exception as error:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise HubRefusal(
                f"there are no credentials for {place}",
                hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, as for the aws command",
            ) from None
        if _code(error) in ("PreconditionFailed", "412"):
            raise replaced(place) from None
        raise EnvironmentProblem(
            f"the object store failed at {place}: {_short(error)}", hint="check the network and run it again"
        ) from None


def replaced(place: ObjectPlace) -> ObjectReplaced:
    """The error for an object that is not the one that was listed."""
    return ObjectReplaced(
        f"{place} is not the object that was listed: it was replaced meanwhile, or the store serves no "
        "ranges",
        hint="run it again, and do not change the checkpoint meanwhile",
    )


def _code(error: Exception) -> object:
    """The store's code for what went wrong, which s3fs hands on in the cause; its words differ by store."""
    answer = getattr(error.__cause__, "response", None) or {}
    return answer.get("Error", {}).get("Code")


def _short(error: Exception) -> str:
    """What went wrong, without addresses and what may stand in them."""
    text = re.sub(r"\S+://\S+", "…", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


class ObjectRanges:
    """Ranges of an object (``hub.ranges.Ranges``), as it was when it was listed."""

    def __init__(self, place: ObjectPlace, size: int, etag: str) -> None:
        self._place, self._size, self._etag = place, size, etag

    @property
    def name(self) -> str:
        """Its address."""
        return str(self._place)

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    @property
    def version(self) -> str:
        """Its ETag."""
        return self._etag

    def fetch(self, view: memoryview, start: int, stopped: Callable[[], bool] = lambda: False) -> None:
        """See ``hub.ranges.Ranges.fetch``; what breaks off goes on where it broke off."""
        done, failed = 0, 0
        while done < len(view):
            before = done
            try:
                for chunk in self._asked(start + done, len(view) - done):
                    view[done : done + len(chunk)] = chunk
                    done += len(chunk)
                    if stopped():
                        raise InterruptedError(f"fetching {self.name} was stopped")
                if done == before:
                    raise EnvironmentProblem(f"{self.name}: the answer was empty", hint="run it again")
            except EnvironmentProblem:
                failed = failed + 1 if done == before else 1
                if failed >= _TRIES:
                    raise

    def _asked(self, start: int, count: int) -> Iterator[bytes]:
        from fsspec.asyn import sync

        span = f"bytes={start}-{start + count - 1}"
        answer = call("get_object", self._place, Range=span, IfMatch=self._etag)
        body, left = answer["Body"], count
        try:
            expected = f"{span.replace('=', ' ')}/{self._size}"
            if answer.get("ContentRange") != expected or answer.get("ETag") != self._etag:
                raise replaced(self._place)
            while left:
                with explained(self._place):
                    chunk = sync(file_system().loop, body.read, min(_CHUNK, left))
                if not chunk:
                    return
                left -= len(chunk)
                yield chunk
        finally:
            body.close()


def object_checkpoint(
    place: ObjectPlace, folder: Path, announce: Callable[[str], None] = lambda text: None
) -> Elsewhere:
    """The checkpoint below a prefix: small files in a folder of that name in ``folder``, weights as a stream.

    Raises HubRefusal, CheckpointError, EnvironmentProblem.
    """
    listed = objects_below(place)
    if "config.json" not in listed:
        raise CheckpointError(
            f"{place} has no config.json, expected a checkpoint: config.json, weights, tokenizer",
            hint="give the prefix the files of the checkpoint lie directly below",
        )
    beside = folder / place.name
    with written(beside):
        beside.mkdir()
        for name, ranges in listed.items():
            if _SMALL.fullmatch(name) and ranges.size <= _LARGEST:
                data = bytearray(ranges.size)
                ranges.fetch(memoryview(data), 0)
                (beside / name).write_bytes(data)
    weights = find_weights(beside, listed.keys()).files
    files = {name: StreamedFile(listed[name], _stored_sum(place / name)) for name in weights}
    stream = WeightStream(files, announce)
    return Elsewhere(beside, {name: stream.opener(name) for name in files}, stream)


def objects_below(place: ObjectPlace) -> dict[str, ObjectRanges]:
    """The objects directly below a prefix, by their names."""
    with explained(place):
        found = file_system().ls(f"{place.bucket}/{place.key}", detail=True, refresh=True)
    names = {str(each["name"]).rpartition("/")[2]: each for each in found if each["type"] == "file"}
    return {
        name: ObjectRanges(place / name, int(each["size"]), str(each["ETag"]))
        for name, each in names.items()
        if is_plain_name(name)
    }


def _stored_sum(place: ObjectPlace) -> str | None:
    """The SHA-256 the store keeps of all of an object, in hexadecimal, if whoever put it there gave one."""
    import base64

    head = call("head_object", place, ChecksumMode="ENABLED")
    kept = head.get("ChecksumSHA256")
    if not isinstance(kept, str) or "-" in kept or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT":
        return None
    return base64.b64decode(kept).hex()


class ObjectPath(PosixPath):
    """The address of an object where a path is expected; it is text to be shown, and opens nothing."""

    def __str__(self) -> str:
        return super().__str__().replace("s3:/", SCHEME, 1)
