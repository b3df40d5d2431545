"""Whether an output is what its step asks for: the source's files, the options, the versions.

A file of the source counts as unchanged where the system says that it is the very file it was (size, times,
inode), else where its SHA-256 is the same; so a copied or touched checkpoint is hashed, not converted again.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..converters.hashes import FoundSums, is_as_recorded
from ..converters.manifest import versions
from ..converters.onnx.folder import parse_layout
from ..converters.onnx.options import OnnxOptions, flavour_for, parse_activations
from ..core.checkpoint import Checkpoint
from ..core.errors import EnvironmentProblem
from ..core.input_files import InputFile, file_sha256
from ..quant.wish import Wanted
from .batch_jobs import Step

_FRESH = 2.0
"""Seconds: a file changed this recently may change again without its times telling."""
_PACKAGES: dict[str, tuple[str, ...]] = {"gguf": (), "onnx": ("onnx",)}

State = list[int]
"""Size, times of change of content and of the rest (ns), inode: a file as the system knows it."""


def state_of(path: Path) -> State | None:
    """None where it is no file (any more), or was changed just now."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    newest = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9
    if not stat.S_ISREG(status.st_mode) or abs(time.time() - newest) < _FRESH:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def source_states(folder: Path) -> dict[str, State | None]:
    """Of all files in a checkpoint's folder, by their paths from there."""
    found: dict[str, State | None] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            found[path.relative_to(folder).as_posix()] = state_of(path)
    return found


def source_record(files: Sequence[Mapping[str, Any]], states: Mapping[str, State | None]) -> dict[str, Any]:
    """What the journal keeps of a source: of each file of the manifest's its size, SHA-256 and state."""
    return {
        file["name"]: {
            "bytes": file["bytes"],
            **{key: file[key] for key in ("sha256", "pieces") if key in file},
            "state": states.get(file["name"]),
        }
        for file in files
    }


def changed_file(
    checkpoint: Checkpoint, record: Mapping[str, Any], hashed: FoundSums
) -> tuple[str | None, dict[str, Any]]:
    """The first file of a source that is not what ``record`` says, None if all are; and the record of today.

    Hashes what the system does not vouch for, small files first; ``hashed`` keeps what was found.
    """
    paths = {path.relative_to(checkpoint.folder).as_posix(): path for path in checkpoint.side_files}
    paths |= {path.relative_to(checkpoint.folder).as_posix(): path for path in checkpoint.weight_files}
    different = sorted(paths.keys() ^ record.keys())
    if different:
        return different[0], {}
    now: dict[str, Any] = {}
    for name, known in sorted(record.items(), key=lambda item: item[1]["bytes"]):
        state = state_of(paths[name])
        if state is None or state != known.get("state"):
            if os.stat(paths[name]).st_size != known["bytes"]:
                return name, {}
            if not is_as_recorded(InputFile(paths[name]), known, hashed):
                return name, {}
        now[name] = {**known, "state": state}
    return None, now


def options_record(step: Step) -> dict[str, Any]:
    """Everything that decides what is in the outputs, besides types and source; files by their content."""
    if step.format == "gguf":
        values = replace(step.gguf_options(), chosen=Wanted()).to_manifest()
        del values["types"], values["verify"]
        if step.wishes:  # targets are in the names of outputs
            asked = step.wanted.to_manifest()
            values |= {"menu": asked["menu"], "policy": asked["policy"]}
        values["modelfile"] = bool(step.options.get("modelfile", False))
    else:
        wanted = {name: step.options.get(name) for name in ("accuracy_level", "allow_nan", "chat_template")}
        layout = parse_layout(step.options.get("layout", "optimum"))
        flavour = flavour_for(layout, step.options.get("flavour"))
        halves = parse_activations(step.options.get("activations", "f32"))
        options = OnnxOptions("auto", layout, flavour=flavour, halves=halves, **wanted)  # type: ignore[arg-type]
        values = options.to_manifest()
        del values["type"]
    template = step.options.get("chat_template")
    named = [*(step.options.get(name) for name in ("imatrix", "policy")), *step.options.get("calibrate", ())]
    paths = [Path(path) for path in (*named, template) if path]
    files = {path.name: file_sha256(path) for path in paths if path.is_file()}
    if template is not None:
        values["chat_template"] = Path(template).name if Path(template).is_file() else template
    return {**_plain(values), **({"files": files} if files else {})}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def versions_record(step: Step) -> dict[str, str]:
    """Of what has a hand in the bytes."""
    return versions(_PACKAGES[step.format])


def different(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """The names whose values are not the same."""
    missing = object()
    return sorted(name for name in {*now, *before} if now.get(name, missing) != before.get(name, missing))


def output_files(paths: Sequence[Path], beside: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """What the journal keeps of an output: of its files what shows a change, of those ``beside`` the name."""
    kept: list[dict[str, Any]] = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as error:
            raise EnvironmentProblem(f"{path} was made and is gone: {error.strerror}") from error
        kept.append({"path": str(path), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns})
    return kept + [{"path": str(path)} for path in beside]


def altered(files: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """The first of an output's files that is missing, and the first that is no longer what was made."""
    missing = changed = None
    for file in files:
        try:
            status = os.stat(file["path"])
        except OSError:
            missing = missing or file["path"]
            continue
        as_made = (file["bytes"], file["mtime_ns"]) if "bytes" in file else None
        if as_made is not None and (status.st_size, status.st_mtime_ns) != as_made:
            changed = changed or file["path"]
    return missing, changed
