"""Files of a checkpoint, opened and read with care: they come from strangers.

Everything here raises CheckpointError for what the file is (missing, a folder, truncated, not UTF-8, not
JSON …) and EnvironmentProblem for what the machine refuses (permission, input/output errors).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .byte_source import Identity, LocalFile, NotAFile, Opener, SummedSource
from .errors import CheckpointError, EnvironmentProblem
from .progress import Progress, silent
from .tensor import Array

TEXT_LIMIT = 64 << 20
"""Largest text or JSON file read, in bytes; the largest tokenizer.json in use (262,144 tokens) has 40 MB."""

MAX_CONTAINERS = 4_000_000
"""Most arrays and objects in one JSON text: each takes 60 to 100 bytes of memory, and two in the file."""

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DOWNLOAD_HINT = "download the checkpoint again, or complete the download"


class InputFile:
    """A file open for reading at given offsets, from any thread, with a reason where that fails.

    ``opener`` gives the bytes (core/byte_source.py). They stay open as long as this is referenced, so lazy
    tensors keep their file open and nothing else does. In a pickle it travels as its source does.
    """

    def __init__(self, path: Path, opener: Opener = LocalFile) -> None:
        self.path = path
        try:
            self._source = opener(path)
        except NotAFile as error:
            raise CheckpointError(f"{path} is {error.kind}, expected a file") from error
        except OSError as error:
            raise _refusal(path, error) from error

    @property
    def size(self) -> int:
        """How many bytes it had when it was opened."""
        return self._source.size

    @property
    def identity(self) -> Identity:
        """Which bytes they were when it was opened."""
        return self._source.identity

    def fileno(self) -> int | None:
        """The descriptor of a file of this machine, which stays this object's; None for bytes elsewhere."""
        return self._source.fileno() if isinstance(self._source, LocalFile) else None

    def check_unchanged(self) -> None:
        """Raise EnvironmentProblem if the file is not what it was when it was opened."""
        if self._source.identity_now() != self._source.identity:
            raise changed_meanwhile(f"{self.path} was changed while it was read")

    def summed_up(self, progress: Progress, stopped: Callable[[], bool]) -> str | None:
        """The SHA-256 in hexadecimal where the source reckons it, when it has; None: hash it yourself."""
        return self._source.sha256(progress, stopped) if isinstance(self._source, SummedSource) else None

    def read(self, offset: int, count: int) -> bytes:
        """Exactly ``count`` bytes from ``offset``; the caller has bounded ``count``."""
        buffer = np.empty(count, np.uint8)
        self.read_into(buffer, offset)
        return buffer.tobytes()

    def read_into(self, buffer: Array, offset: int, what: str = "") -> None:
        """Fill a C-contiguous ``buffer`` with the bytes from ``offset``; ``what`` names them in errors."""
        view = buffer.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            try:
                got = self._source.read_into(view[done:], offset + done)
            except OSError as error:
                raise _refusal(self.path, error) from error
            if got == 0:
                ends = f"{self.path} ends after {offset + done} bytes, expected {offset + len(view)}"
                ends += f" for {what}" if what else ""
                if offset + len(view) <= self.size:
                    raise changed_meanwhile(f"{ends}; it was longer when it was opened")
                raise CheckpointError(ends, hint=DOWNLOAD_HINT)
            done += got


def changed_meanwhile(message: str) -> EnvironmentProblem:
    """The error for an input that changed while it was read, which is no verdict on the input."""
    return EnvironmentProblem(message, hint="run it again, and do not change the input meanwhile")


def _refusal(path: Path, error: OSError) -> CheckpointError | EnvironmentProblem:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if path.is_symlink():
            return CheckpointError(
                f"{path} is a link to {os.readlink(path)}, which does not exist", hint=DOWNLOAD_HINT
            )
        return CheckpointError(f"{path} does not exist", hint=DOWNLOAD_HINT)
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return CheckpointError(f"{path} cannot be followed: {error.strerror}")
    if isinstance(error, PermissionError):
        return EnvironmentProblem(f"no permission to read {path}", hint="change its permissions or its owner")
    return EnvironmentProblem(f"cannot read {path}: {error.strerror or error}")


def quoted(text: object) -> str:
    """A name or value out of a file, made fit to print: escaped, on one line, at most 120 characters."""
    if isinstance(text, str):
        shown = f"'{text[:121]}'" if text.isprintable() else ascii(text[:121])
    else:
        try:
            shown = ascii(reprlib.repr(text))[1:-1]  # reprlib: the value may be a list of millions
        except (RecursionError, ValueError):  # ValueError: an integer of more than 4,300 digits
            shown = f"a {type(text).__name__}"
    return shown if len(shown) <= 120 else f"{shown[:117]}..."


def is_plain_name(name: object) -> bool:
    """Whether ``name`` is a file name that can only mean a file in the folder at hand."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and name.isprintable()
        and not set(name) & set('/\\:*?"<>|')
        and len(name.encode()) <= 255
    )


def stays_with(path: Path, *others: Path) -> bool:
    """Whether a file is no link, or one into its own folder or to where a link among ``others`` leads.

    So links lead in the Hub's cache, where contents that came by Xet may lie in its shared store. Any other
    link could carry a file of this machine's into what is made.
    """
    real = Path(os.path.realpath(path))
    places = {Path(os.path.realpath(each)).parent for each in others}
    if real.is_relative_to(os.path.realpath(path.parent)) or real.parent in places:
        return True
    store = _store_of(path)
    return store is not None and real.is_relative_to(store)


def _store_of(path: Path) -> Path | None:
    """The folder of contents that repositories in the Hub's cache share, if the file is a link in one.

    ``CACHE/models--org--name/snapshots/COMMIT/…`` leads to ``models--org--name/blobs/…``, and that on to
    ``CACHE/blobs/…`` (huggingface_hub 2.4).
    """
    try:
        first = Path(os.path.abspath(path.parent / os.readlink(path)))
    except OSError:
        return None
    snapshots = next((each for each in path.absolute().parents if each.name == "snapshots"), None)
    if snapshots is None or first.parent != snapshots.parent / "blobs":
        return None
    return Path(os.path.realpath(snapshots.parent.parent / "blobs"))


def refuse_lfs_pointer(path: Path, head: bytes) -> None:
    """Raise CheckpointError if the file is what Git leaves in place of a large file it has not fetched."""
    if head.startswith(LFS_POINTER):
        raise CheckpointError(
            f"{path} is a Git LFS pointer, not the file itself", hint="run `git lfs pull` in that folder"
        )


def read_bytes(folder: Path, name: str, *, limit: int = TEXT_LIMIT) -> bytes | None:
    """The bytes of a file in ``folder``, or None if there is none of that name."""
    path = folder / name
    if not is_plain_name(name):
        raise CheckpointError(f"{quoted(name)} is not a plain file name")
    if not os.path.lexists(path):
        return None
    file = InputFile(path)
    if file.size > limit:
        raise CheckpointError(f"{path} has {file.size} bytes, expected at most {limit}")
    data = file.read(0, file.size)
    refuse_lfs_pointer(path, data[:100])
    return data


def read_text(folder: Path, name: str, *, limit: int = TEXT_LIMIT) -> str | None:
    """The text of a UTF-8 file in ``folder``, or None if there is none of that name.

    A byte order mark is taken off; line ends stay as they are (a token may hold a carriage return).
    """
    data = read_bytes(folder, name, limit=limit)
    return None if data is None else _decode(data, folder / name)


def read_json(folder: Path, name: str, *, limit: int = TEXT_LIMIT) -> dict[str, Any] | None:
    """The JSON object in a file of ``folder``, or None if there is none of that name.

    Raises CheckpointError if it is anything but one object of valid UTF-8 JSON, or says one key twice with
    different values.
    """
    text = read_text(folder, name, limit=limit)
    if text is None:
        return None
    value = parse_json(text, str(folder / name))
    if not isinstance(value, dict):
        raise CheckpointError(f"{folder / name} contains a JSON {_kind(value)}, expected an object")
    return value


def parse_json(text: str, where: str, *, allow_repeats: bool = True) -> Any:
    """Parse JSON from a stranger; ``allow_repeats`` lets a key appear again with the same value.

    Raises CheckpointError beginning with ``where``.
    """

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: dict[str, Any] = {}
            for key, value in pairs:
                if key in seen and not (allow_repeats and _plainly_equal(seen[key], value)):
                    raise CheckpointError(f"{where} has the key {quoted(key)} twice in one object")
                seen[key] = value
        return result

    if text.count("[") + text.count("{") > MAX_CONTAINERS:
        raise CheckpointError(f"{where} contains more than {MAX_CONTAINERS} arrays and objects")
    try:
        value = json.loads(text, object_pairs_hook=checked)
        if re.search(r"\\u[dD][89a-fA-F]", text):  # there may be half a surrogate pair, which is no character
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise CheckpointError(f"{where} is nested too deeply for a file of this kind") from error
    except UnicodeEncodeError as error:
        raise CheckpointError(f"{where} contains half a surrogate pair, which is not a character") from error
    except ValueError as error:  # JSONDecodeError, and integers of thousands of digits
        raise CheckpointError(f"{where} is not valid JSON: {error}", hint=DOWNLOAD_HINT) from error
    return value


def _plainly_equal(a: object, b: object) -> bool:
    return type(a) is type(b) and isinstance(a, str | int | float | bool | None) and a == b


def _decode(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _kind(value: object) -> str:
    kinds = {list: "array", str: "string", bool: "boolean", int: "number", float: "number"}
    return kinds.get(type(value), "null")


def file_sha256(
    source: Path | InputFile, progress: Progress = silent, *, stopped: Callable[[], bool] = lambda: False
) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces of 4 MiB with the interpreter's lock released.

    Calls ``progress("hash", bytes done, bytes in all)``. ``stopped`` is asked before each piece; once it says
    yes, InterruptedError is raised. Raises EnvironmentProblem if the file is changed meanwhile.
    """
    file = source if isinstance(source, InputFile) else InputFile(source)
    if (known := file.summed_up(progress, stopped)) is not None:
        return known
    digest = hashlib.sha256()
    buffer = np.empty(4 << 20, np.uint8)
    for offset in range(0, file.size, len(buffer)):
        piece = buffer[: min(len(buffer), file.size - offset)]
        if stopped():
            raise InterruptedError(f"hashing {file.path} was stopped")
        file.read_into(piece, offset)
        digest.update(piece.data)
        progress("hash", offset + len(piece), file.size)
    file.check_unchanged()
    return digest.hexdigest()
