"""Whether a file of the Hub's cache has the contents its blob is named for.

The name of a blob is what the Hub said the contents would be. huggingface_hub looks at the length alone when
they came by plain HTTP, and disks forget; only the hash of what is there tells.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from ..core.errors import EnvironmentProblem

_NAMED = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def check_contents(path: Path, sha256: str) -> None:
    """Hold the SHA-256 of a file's contents against the name of the blob it is a link to, if it is one.

    Small files are called by Git's SHA-1, which is computed here. The first link counts: contents that came
    by Xet may lie behind a second one, in a store that names them by another hash. Raises EnvironmentProblem.
    """
    blob = blob_of(path)
    if blob is None:
        return
    try:
        found = sha256 if len(blob.name) == 64 else _git_name(path.read_bytes())
    except OSError:  # gone since
        return
    if found != blob.name:
        kind = "SHA-256" if len(blob.name) == 64 else "Git's SHA-1"
        raise EnvironmentProblem(
            f"{path} is damaged: the {kind} of its contents is {found}, the Hub's is {blob.name}",
            hint=f"remove {path.parent / blob} and fetch it again",
        )


def blob_of(path: Path) -> Path | None:
    """Where the blob is that a file of the Hub's cache is a link to; None for any other file."""
    try:
        blob = Path(os.readlink(path))
    except OSError:  # no link
        return None
    return blob if blob.parent.name == "blobs" and _NAMED.fullmatch(blob.name) else None


def _git_name(data: bytes) -> str:
    digest = git_digest(len(data))
    digest.update(data)
    return digest.hexdigest()


def git_digest(size: int) -> hashlib._Hash:
    """What gives Git's name for contents of ``size`` bytes, once it is fed with them."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
