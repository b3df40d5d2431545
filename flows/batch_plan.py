"""What a step of a batch still has to make, and how large that gets: ``plan_step``, a task of its own.

Only headers are read, as for ``kconv plan``, and the vocabulary is not compared, which would take longer than
many a small conversion; the files of the tokenizer stand for its size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from ..converters.family import AnyFamily
from ..converters.intake import open_model
from ..converters.mapping import build
from ..converters.onnx.formats import choose_onnx_formats
from ..converters.results import Options
from ..converters.targets import (
    Target,
    check_request,
    choose_companion_targets,
    choose_targets,
    manifest_path,
)
from ..core.checkpoint import Checkpoint
from ..core.errors import InputError, KconvError, OutputExists, UsageError
from ..quant.importance import importance_to_be, read_importance
from .batch_fingerprint import (
    altered,
    changed_file,
    different,
    options_record,
    output_files,
    source_record,
    versions_record,
)
from .batch_jobs import Step, canonical
from .batch_journal import Record, made_of
from .convert import plan_files
from .to_onnx import onnx_folder_name

_STRENGTH = {"off": 0, "quick": 1, "full": 2}
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
class StepPlan:
    """What a step has to do. ``source_bytes`` are those of the checkpoint's weights."""

    step: Step
    outputs: tuple[PlannedOutput, ...]
    source_bytes: int = 0

    @property
    def to_make(self) -> list[PlannedOutput]:
        """The outputs that are not done and can be."""
        return [output for output in self.outputs if output.state == "make"]

    @property
    def bytes(self) -> int:
        """About what the outputs to make take."""
        return sum(output.bytes for output in self.to_make)


@dataclass(frozen=True)
class _Look:
    """What is needed to judge an output of a step."""

    step: Step
    checkpoint: Checkpoint
    records: Mapping[str, Record]
    force: bool
    again: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hashed: dict[str, str] = field(default_factory=dict)


def plan_step(step: Step, records: Mapping[str, Record], force: bool, again: bool) -> StepPlan:
    """Look at a step's source and at what lies where its outputs go; ``records`` are the journal's on them.

    With ``force`` files that were not made by this batch may be replaced, with ``again`` nothing counts as
    done. Raises what a conversion raises before it reads weights, but for single types.
    """
    if step.format == "gguf":
        check_request(step.output, step.gguf_options())
    checkpoint, family = open_model(step.source)
    look = _Look(step, checkpoint, records, force, again, options_record(step), versions_record(step))
    sizes = _gguf_sizes if step.format == "gguf" else _onnx_sizes
    outputs = []
    for (key, name), found in zip(step.keys.items(), sizes(look, family), strict=True):
        if isinstance(found, KconvError):
            outputs.append(PlannedOutput(key, name, step.output, 0, "refused", error=found))
        else:
            outputs.append(_judged(look, key, name, *found))
    return StepPlan(step, tuple(outputs), sum(file.size for file in checkpoint.opened))


def _gguf_sizes(look: _Look, family: AnyFamily) -> list[tuple[Path, int] | KconvError]:
    """Path and bytes for each type, or why it cannot be."""
    step, checkpoint, options = look.step, look.checkpoint, look.step.gguf_options()
    model, companions = build(family, checkpoint), family.companions(checkpoint)
    if options.keep_wo and not any(model.has_wide_input(tensor.name) for tensor in model.tensors):
        raise UsageError(
            f"--keep-wo is for T5 and ByT5; this checkpoint becomes {model.arch}", hint="leave it out"
        )
    importance = None if options.imatrix is None else read_importance(options.imatrix)
    if options.calibrate:
        importance = importance_to_be(model.tensors)
    beside = _tokenizer_bytes(checkpoint)
    sizes: list[tuple[Path, int] | KconvError] = []
    for name in step.types:
        try:
            (target,) = _target(look, model, replace(options, types=(name,)))
            choose_companion_targets(checkpoint, companions, [target], force=look.force)
            _, (plan,) = plan_files(model, [target], companions, importance)
        except (InputError, UsageError) as error:
            sizes.append(error)
        else:
            sizes.append((plan.paths[0], beside + sum(len(head) + data for head, data in plan.layout())))
    return sizes


def _target(look: _Look, model: Any, options: Options) -> list[Target]:
    modelfile = bool(look.step.options.get("modelfile", False))
    return choose_targets(look.checkpoint, model, look.step.output, options, modelfile=modelfile, force=True)


def _onnx_sizes(look: _Look, family: AnyFamily) -> list[tuple[Path, int] | KconvError]:
    checkpoint = look.checkpoint
    model = build(family, checkpoint, "ONNX")
    sizes: list[tuple[Path, int] | KconvError] = []
    for name in look.step.types:
        chosen = choose_onnx_formats(family, checkpoint, model, name)
        weights = sum(
            checkpoint.tensors[tensor].elements * format.block_bytes // format.block_size
            for tensor, format in chosen.formats.items()
            if tensor in checkpoint.tensors and tensor not in checkpoint.aliases
        )
        path = look.step.output / onnx_folder_name(checkpoint, chosen.type)
        sizes.append((path, weights + _tokenizer_bytes(checkpoint)))
    return sizes


def _tokenizer_bytes(checkpoint: Checkpoint) -> int:
    """Of the small files, most of which are the tokenizer."""
    return sum(path.stat().st_size for path in checkpoint.side_files if path not in checkpoint.weight_files)


def _judged(look: _Look, key: str, name: str, path: Path, size: int) -> PlannedOutput:
    """Whether an output is done, and if not, whether what lies there may be replaced."""
    record = look.records.get(key, {})
    made = made_of(record)
    if made is not None:
        path = Path(made["path"]) if canonical(look.step.format, name) == "auto" else path
        missing, changed = altered(made["files"])
        if changed is None and missing is not None:
            return PlannedOutput(key, name, path, size, "make", f"{missing} is missing", overwrite=True)
        if changed is None:
            why, today = _outdated(look, made)
            if why is None:
                return PlannedOutput(key, name, path, size, "done", record=today)
            return PlannedOutput(key, name, path, size, "make", why, overwrite=True)
    if not path.exists():
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


def _was_begun(record: Mapping[str, Any], path: Path) -> bool:
    """Whether a conversion that came to no good end has left ``path``: it is from then."""
    if "began" not in record:
        return False
    changed, (begun, ended) = path.stat().st_mtime, map(_seconds, (record["began"], record["time"]))
    return changed > begun - _SLACK and (record["event"] == "began" or changed < ended + _SLACK)


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()


def _outdated(look: _Look, record: Record) -> tuple[str | None, Record | None]:
    """Why an output has to be made again, None if it has not; and its record where that is to be renewed."""
    if look.again:
        return "asked for", None
    if record["verdict"] in _UNPROVEN:
        return f"its proof: {record['verdict']}", None
    if other := different(look.versions, record["versions"]):
        return f"made by other versions: {', '.join(other)}", None
    if other := different(look.options, record["options"]):
        return f"other options: {', '.join(other)}", None
    if _STRENGTH[look.step.scope] > _STRENGTH[record["scope"]]:
        return f"its proof was {record['scope']}, now {look.step.scope}", None
    changed, today = changed_file(look.checkpoint, record["source"], look.hashed)
    if changed is not None:
        return f"{changed} changed", None
    return None, None if today == record["source"] else {**record, "source": today}


def _adopted(look: _Look, name: str, path: Path) -> Record | None:
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
    wanted = canonical(step.format, name)
    return wanted == "auto" or wanted.lower() == made.lower()


def _is_proven(look: _Look, record: Mapping[str, Any]) -> bool:
    return look.step.scope == "off" or record["verdict"] not in ("not run", *_UNPROVEN)
