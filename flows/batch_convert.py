"""One step of a batch, done: ``convert_step``, a task of its own, and what the journal is to say of it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..converters.targets import manifest_path
from ..core.cores import available_cores
from ..verify.proof import Proof
from .batch_fingerprint import (
    State,
    options_record,
    output_files,
    source_record,
    source_states,
    state_of,
    versions_record,
)
from .batch_jobs import Step
from .executor_child import report_progress
from .results import Conversion, OnnxConversion
from .resume import CannotResume


def convert_step(
    step: Step, commit: str | None, overwrite: bool, share: int, resume: bool
) -> list[dict[str, Any]]:
    """Convert, and return a record (``made``) for each output. Raises KconvError of all kinds.

    ``commit`` is the one to take of a source on the Hub. ``share``: how many steps run at once on a
    machine, which have its processors between them. With ``resume`` it goes on with what an earlier run of it
    has left, if that was to become the same.
    """
    begun = time.monotonic()
    threads = step.threads or max(1, available_cores() // share)
    place = step.source if commit is None else f"{step.address.partition('@')[0]}@{commit}"
    before = source_states(Path(step.source)) if commit is None else {}
    options, versions = options_record(step), versions_record(step)
    how = {**step.options, "force": overwrite, "threads": threads, "progress": report_progress}
    convert = _to_gguf if step.format == "gguf" else _to_onnx
    try:
        found = convert(step, place, {**how, "resume": resume})
    except CannotResume:
        found = convert(step, place, how)
    seconds = round(time.monotonic() - begun, 3)
    return [
        {
            **each,
            "job": step.job,
            "commit": commit,
            "scope": step.scope,
            "options": options,
            "versions": versions,
            "source": source_record(each["source"], _unchanged(Path(step.source), before)),
            "seconds": seconds,
        }
        for each in found
    ]


def _unchanged(folder: Path, before: Mapping[str, State | None]) -> dict[str, State | None]:
    """States of files that are now what they were before the conversion."""
    return {name: state for name, state in before.items() if state and state_of(folder / name) == state}


def _to_gguf(step: Step, place: str, how: Mapping[str, Any]) -> list[dict[str, Any]]:
    from .convert import to_gguf

    options = step.gguf_options()
    chosen = options.chosen
    how = {**how, "target_size": chosen.sizes, "target_kl": chosen.divergences}
    how |= {"menu": chosen.menu, "policy": chosen.policy}
    made = to_gguf(place, step.output, types=options.types, **how)
    proofs = made.proofs or [None] * len(made.outputs)
    records = {
        output.type: {
            "path": str(output.path),
            "type": output.type,
            "bytes": output.bytes,
            "files": output_files(
                output.parts or [output.path],
                [output.manifest, *filter(None, (output.modelfile, output.policy)), *_companions(made)],
            ),
            "source": _manifest_source(output.manifest),
            **_proven(proof),
        }
        for output, proof in zip(made.outputs, proofs, strict=True)
    }
    named = {key: step.canonical(name) for key, name in step.keys.items()}
    own = [type_name for type_name in records if type_name not in named.values()] or list(records)
    return [{"key": key, **records[name if name != "auto" else own[0]]} for key, name in named.items()]


def _companions(made: Conversion) -> list[Path]:
    return [each.path for each in made.companions]


def _to_onnx(step: Step, place: str, how: Mapping[str, Any]) -> list[dict[str, Any]]:
    from .to_onnx import to_onnx

    records = []
    for key, name in step.keys.items():
        made: OnnxConversion = to_onnx(place, into=step.output, type=name, **how)
        manifest = manifest_path(made.path)
        files = output_files([made.path / each for each in made.files], [manifest])
        records.append(
            {
                "key": key,
                "path": str(made.path),
                "type": made.type,
                "bytes": made.bytes,
                "files": files,
                "source": _manifest_source(manifest),
                **_proven(made.proof),
            }
        )
        if how.get("calibrate"):  # what was learned for the first does for the others
            learned = json.loads(manifest.read_text("utf-8"))["importance"]["file"]
            how = {**how, "calibrate": (), "imatrix": made.path.absolute().parent / learned}
    return records


def _manifest_source(manifest: Path) -> Sequence[Mapping[str, Any]]:
    """The files it was made from, with the SHA-256 of what was read."""
    files: Sequence[Mapping[str, Any]] = json.loads(manifest.read_text("utf-8"))["source"]["files"]
    return files


def _proven(proof: Proof | None) -> dict[str, Any]:
    """Verdict, cause and loss."""
    if proof is None:
        return {"verdict": "not run", "cause": None, "kl_mean": None}
    figures = proof.logits.figures
    cause = None if proof.cause is None else str(proof.cause)
    return {"verdict": proof.verdict, "cause": cause, "kl_mean": None if figures is None else figures.kl_mean}
