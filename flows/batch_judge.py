"""Whether an output of a batch is done, and if not, whether what lies in its place may be replaced.

The journal says what was made of what; where it does not, the manifest beside an output does.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ..converters.hashes import FoundSums
from ..converters.results import STRENGTH
from ..converters.targets import manifest_path
from ..core.checkpoint import Checkpoint
from ..core.errors import KconvError, OutputExists
from .batch_fingerprint import altered, changed_file, different, output_files, source_record
from .batch_jobs import Step
from .batch_journal import Record, made_of

_UNPROVEN = ("failed", "not decided")
_SLACK = 2.0  # seconds by which clocks and times of files may differ


@dataclass(frozen=True)
class PlannedOutput:
    """One output: ``done`` as it is, to ``make``, or ``refused`` with ``error``.

    ``bytes`` is about what it takes. ``why`` says what is wrong with what is there. ``record`` is what the
    journal shall say of one that is done, where it says something else. ``overwrite``: what lies at ``path``
    is this batch's own, or may be replaced all the same.
    """

    key: str
    type: str
    path: Path
    bytes: int
    state: Literal["done", "make", "refused"]
    why: str = ""
    record: Record | None = None
    error: KconvError | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Look:
    """What is needed to judge an output of a step.

    ``commit`` is that of a source on the Hub, which stands for its files; ``checkpoint`` is None where only
    outputs count that need no look at it.
    """

    step: Step
    checkpoint: Checkpoint | None
    records: Mapping[str, Record]
    force: bool
    again: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    commit: str | None = None
    hashed: FoundSums = field(default_factory=dict)


def judged(look: Look, key: str, name: str, path: Path, size: int) -> PlannedOutput:
    """Whether an output is done, and if not, whether what lies there may be replaced."""
    record = look.records.get(key, {})
    made = made_of(record)
    if made is not None:
        path = Path(made["path"]) if look.step.canonical(name) == "auto" else path
        missing, changed = altered(made["files"])
        if changed is None and missing is not None:
            return PlannedOutput(key, name, path, size, "make", f"{missing} is missing", overwrite=True)
        if changed is None:
            why, today = _outdated(look, made)
            if why is None:
                return PlannedOutput(key, name, path, size, "done", record=today)
            return PlannedOutput(key, name, path, size, "make", why, overwrite=True)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return PlannedOutput(key, name, path, size, "make")
    adopted = _adopted(look, name, path)
    if adopted is not None and not look.again:
        return PlannedOutput(key, name, path, size, "done", record={**adopted, "key": key})
    if look.force or adopted is not None or _was_begun(record, path):
        return PlannedOutput(key, name, path, size, "make", f"{path.name} is replaced", overwrite=True)
    error = OutputExists(
        f"{path} already exists and is not what these jobs made",
        hint="choose another output, or pass --force to overwrite it",
    )
    return PlannedOutput(key, name, path, size, "refused", error=error)


def all_done(look: Look) -> list[PlannedOutput] | None:
    """The outputs of a step if the journal and its files are enough to say that all of them are done."""
    outputs = []
    for key, name in look.step.keys.items():
        made = made_of(look.records.get(key, {}))
        if made is None or altered(made["files"]) != (None, None) or _outdated(look, made)[0] is not None:
            return None
        outputs.append(PlannedOutput(key, name, Path(made["path"]), int(made["bytes"]), "done"))
    return outputs


def _was_begun(record: Mapping[str, Any], path: Path) -> bool:
    """Whether a conversion that came to no good end has left ``path``: it is from then."""
    if "began" not in record:
        return False
    changed, (begun, ended) = path.stat().st_mtime, map(_seconds, (record["began"], record["time"]))
    return changed > begun - _SLACK and (record["event"] == "began" or changed < ended + _SLACK)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _outdated(look: Look, record: Record) -> tuple[str | None, Record | None]:
    """Why an output has to be made again, None if it has not; and its record where that is to be renewed."""
    if look.again:
        return "asked for", None
    if record["verdict"] in _UNPROVEN:
        return f"its proof: {record['verdict']}", None
    if other := different(look.versions, record["versions"]):
        return f"made by other versions: {', '.join(other)}", None
    if other := different(look.options, record["options"]):
        return f"other options: {', '.join(other)}", None
    if STRENGTH[look.step.scope] > STRENGTH[record["scope"]]:
        return f"its proof was {record['scope']}, now {look.step.scope}", None
    if look.commit is not None or record.get("commit") is not None:
        before = record.get("commit")
        return (None if before == look.commit else f"the source's commit was {str(before)[:7]}"), None
    assert look.checkpoint is not None
    changed, today = changed_file(look.checkpoint, record["source"], look.hashed)
    if changed is not None:
        return f"{changed} changed", None
    return None, None if today == record["source"] else {**record, "source": today}


def _adopted(look: Look, name: str, path: Path) -> Record | None:
    """The record of an output that kconv made outside this journal, or just before it could be written.

    Its manifest says what it was made from and how. None where that is not what the step asks for.
    """
    manifest = manifest_path(path)
    try:
        content = json.loads(manifest.read_text("utf-8"))
        files = _manifest_files(path, content)
        if max(file["mtime_ns"] for file in files) > manifest.stat().st_mtime_ns + _SLACK * 1e9:
            return None  # somebody has changed it since
        if "files" in look.options or (look.options.get("modelfile") and not _modelfile(path).exists()):
            return None
        kept = {option: value for option, value in content["options"].items() if option in look.options}
        scope = content["options"].get("verify") or content["proof"].get("scope", "off")
        record = {
            "event": "made",
            "path": str(path),
            "type": content["output"]["type"],
            "bytes": content["output"]["bytes"],
            "files": [*files, *output_files([], [manifest])],
            "verdict": content["proof"]["verdict"],
            "scope": scope,
            "options": {**look.options, **kept},
            "versions": content["versions"],
            "source": source_record(content["source"]["files"], {}),
            "commit": content["source"]["revision"] if look.commit is not None else None,
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not a manifest of ours
        return None
    if _type_is(name, look.step, record["type"]) and _is_proven(look, record):
        why, today = _outdated(replace(look, again=False), record)
        return None if why is not None else today or record
    return None


def _modelfile(path: Path) -> Path:
    return path.with_suffix(".Modelfile")


def _manifest_files(path: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The output's files with what shows a change; ValueError where they are not as the manifest says."""
    if path.is_dir():
        files = output_files([path / file["name"] for file in content["output"]["files"]])
        sizes = [file["bytes"] for file in content["output"]["files"]]
        if [file["bytes"] for file in files] != sizes:
            raise ValueError
        return files
    files = output_files([path])
    if content["output"]["file"] != path.name or files[0]["bytes"] != content["output"]["bytes"]:
        raise ValueError
    return files


def _type_is(name: str, step: Step, made: str) -> bool:
    """Whether that type was asked for; what ``auto`` is shows in the file's path already."""
    wanted = step.canonical(name)
    return wanted == "auto" or wanted.lower() == made.lower()


def _is_proven(look: Look, record: Mapping[str, Any]) -> bool:
    return look.step.scope == "off" or record["verdict"] not in ("not run", *_UNPROVEN)
