"""Reading manifests: where a file says it comes from. Like the files themselves they come from strangers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, InputError
from ..core.input_files import InputFile, is_plain_name, quoted
from ..core.piece_sums import PIECE, piece_count
from .targets import manifest_path

_LIMIT = 16 << 20  # bytes; the manifest of a model with 300 tensors has 20 kB
_MAX_CONTAINERS = 100_000
MADE_FROM = "made_from"
"""The key of a manifest that names the GGUF a file was made from, where it was not the checkpoint."""
IGNORE = "pass --ignore-manifest to verify against the checkpoint as it is now"


@dataclass(frozen=True)
class RecordedFile:
    """A file as it was after the conversion, or the checkpoint's before it; ``sha256`` in hexadecimal.

    A file of weights in an ONNX folder has none (None): its weights are compared one by one. Nor has a large
    file of the checkpoint's of which ``pieces`` has the sums (core/piece_sums.py).
    """

    name: str
    bytes: int
    sha256: str | None
    pieces: tuple[str, ...] = ()


def read_manifest(artifact: Path) -> Mapping[str, Any] | None:
    """The manifest beside a file or in a folder, or None where there is none.

    ``source.files``, ``output``, ``options`` and ``versions`` have been checked to be of the types kconv
    writes. Raises InputError where it is anything else, EnvironmentProblem where it cannot be read.
    """
    path = manifest_path(artifact)
    if not path.is_symlink() and not path.exists():
        return None
    try:
        file = InputFile(path)
        if file.size > _LIMIT:
            raise _garbage(path, f"has {file.size} bytes, expected at most {_LIMIT}")
        text = file.read(0, file.size).decode("utf-8-sig")
    except CheckpointError as error:  # a folder, a pipe, a link to nowhere
        raise InputError(error.message, hint=f"remove it, or {IGNORE}") from error
    except UnicodeDecodeError as error:
        raise _garbage(path, f"is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if text.count("[") + text.count("{") > _MAX_CONTAINERS:
        raise _garbage(path, f"contains more than {_MAX_CONTAINERS} arrays and objects")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _garbage(path, "is nested too deeply") from error
    except ValueError as error:  # JSONDecodeError, and integers of thousands of digits
        raise _garbage(path, f"is not valid JSON: {error}") from error
    _check(value, path)
    manifest: Mapping[str, Any] = value
    return manifest


def _garbage(path: Path, what: str) -> InputError:
    return InputError(f"{path} {what}", hint=f"convert again, or {IGNORE}")


def _check(value: Any, path: Path) -> None:
    """Refuse what a manifest of kconv cannot be."""
    if not isinstance(value, dict):
        raise _garbage(path, "contains no JSON object, so it is not a kconv manifest")
    for key in ("output", "source", "options", "versions"):
        if not isinstance(value.get(key), dict):
            raise _garbage(path, f"has {quoted(value.get(key))} for {key}, expected an object")
    size = value["output"].get("bytes")
    if type(size) is not int or size < 0:
        raise _garbage(path, f"has {quoted(size)} for output.bytes, expected a size in bytes")
    if not all(isinstance(version, str) for version in value["versions"].values()):
        raise _garbage(path, "has values in versions that are not text")
    recorded_files(value, path)


def recorded_files(manifest: Mapping[str, Any], path: Path) -> tuple[RecordedFile, ...]:
    """The files a manifest names; ``path`` is its own, for messages. Raises InputError."""
    return _files(manifest, "source", path)


def written_files(manifest: Mapping[str, Any], path: Path) -> tuple[RecordedFile, ...]:
    """The files of a folder as they were written, named by their paths in it; as ``recorded_files``."""
    return _files(manifest, "output", path)


def _files(manifest: Mapping[str, Any], key: str, path: Path) -> tuple[RecordedFile, ...]:
    files = manifest[key].get("files")
    if not isinstance(files, list) or not files:
        raise _garbage(path, f"has {quoted(files)} for {key}.files, expected a list of files")
    recorded = []
    for file in files:
        entry: dict[str, Any] = file if isinstance(file, dict) else {}
        name, size, digest = entry.get("name"), entry.get("bytes"), entry.get("sha256")
        pieces = _pieces(entry)
        absent = "sha256" not in entry and (key == "output" or pieces)
        if (
            not (isinstance(name, str) and all(map(is_plain_name, name.split("/"))))
            or not (isinstance(size, int) and size >= 0)
            or not (absent or (isinstance(digest, str) and len(digest) == 64))
            or (pieces and len(pieces) != piece_count(size))
        ):
            raise _garbage(path, f"has {quoted(file)} in {key}.files, expected name, bytes and sha256")
        recorded.append(RecordedFile(name, size, digest.lower() if isinstance(digest, str) else None, pieces))
    return tuple(recorded)


def _pieces(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The sums of a file's pieces, none where there are no such of the size kconv makes."""
    sums = entry.get("pieces")
    if entry.get("piece_bytes") != PIECE or not isinstance(sums, list):
        return ()
    return tuple(sums) if all(isinstance(each, str) and len(each) == 64 for each in sums) else ()
