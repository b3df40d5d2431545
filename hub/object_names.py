"""What people write for a place in an object store: ``s3://bucket/key``. Nothing here asks a store."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..core.errors import UsageError
from ..core.input_files import is_plain_name, quoted

SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class ObjectPlace:
    """An object, or all whose keys begin with ``key`` and a slash."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> ObjectPlace:
        return ObjectPlace(self.bucket, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """The last part of the key, or the bucket."""
        return self.key.rpartition("/")[2] or self.bucket


def parse_object(text: object) -> ObjectPlace | None:
    """The place ``s3://bucket/key`` names; None for anything that begins otherwise. Raises UsageError."""
    if not isinstance(text, str) or not text.lower().startswith(SCHEME):
        return None
    bucket, _, key = text[len(SCHEME) :].partition("/")
    key = key.strip("/")
    if not _BUCKET.fullmatch(bucket) or not all(is_plain_name(part) for part in key.split("/") if key):
        raise UsageError(
            f"{quoted(text)} names no object; expected s3://bucket/key",
            hint="a bucket has 3 to 63 lower-case letters, digits, dots and hyphens; keys in it are plain "
            "names with slashes between them",
        )
    return ObjectPlace(bucket, key)
