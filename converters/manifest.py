"""The manifest beside each file: where it came from, what was done, and what was proven.

Nothing in it depends on the clock, the host or the number of threads, so equal runs give equal manifests. The
one exception: ``hashed`` says of each file of the source whether this run has read it for its SHA-256, or a
receipt of an earlier run was there (core/receipts.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.checkpoint import Checkpoint
from ..core.files import atomic_file
from ..core.model import Model
from ..core.reading import hub_origin
from ..quant import native
from ..quant.importance import Importance, plain_name
from ..vocab.parity import Parity
from .gguf_plan import FilePlan
from .hashes import SourceFile
from .mapping import parameters
from .recorded import MADE_FROM
from .results import CompanionFile, Options, Output
from .targets import checkpoint_name

if TYPE_CHECKING:
    from ..quant.optimize import Optimization

_PACKAGES = ("kconv", "gguf", "llama-cpp-python", "numpy", "sentencepiece", "tokenizers")

# Options of the first conversion that say what every file made from its file holds.
HELD = (
    "allow_tokenizer_mismatch",
    "disabled_adapters",
    "chat_template",
    "drop_extra_tokens",
    "words_as_text",
)

# What the checkpoint's card says, for those who make another of the manifest (report/model_card.py).
_OF_THE_CARD = {
    "license_name": "general.license.name",
    "license_link": "general.license.link",
    "languages": "general.languages",
}


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of what has a hand in the bytes, and of ``more`` packages; ``kernels`` says who encodes.

    Which instruction set does is of no account: the bytes are the same, and so must manifests be.
    """
    used = {"kernels": native.LIBGGML if native.chosen().name == native.LIBGGML else "kconv"}
    for package in (*_PACKAGES, *more):
        try:
            used[package] = version(package)
        except PackageNotFoundError:
            used[package] = "missing"
    return used


def common_part(
    checkpoint: Checkpoint,
    options: Options,
    parity: Parity,
    importance: Importance | None,
    model: Model,
    files: Sequence[SourceFile],
    companions: Sequence[CompanionFile],
) -> dict[str, Any]:
    """What the manifests of one conversion share; the last three are known when the files are written."""
    return {
        "source": source_part(checkpoint, model, files),
        "architecture": model.arch,
        "parameters": parameters(model),
        "options": options.to_manifest(),
        "versions": versions(),
        "notes": [asdict(note) for note in model.notes],
        "companions": [_companion(beside) for beside in companions],
        "importance": None if importance is None else importance_part(importance),
        "proof": {"verdict": "not run", "tokens": parity.to_json()},
    }


def source_part(checkpoint: Checkpoint, model: Model, files: Sequence[SourceFile]) -> dict[str, Any]:
    """Where a conversion comes from."""
    repository, revision = hub_origin(checkpoint.folder)
    return {
        "name": checkpoint_name(checkpoint),
        "repository": repository,
        "revision": revision,
        "license": model.metadata.get("general.license"),
        **{key: model.metadata[name] for key, name in _OF_THE_CARD.items() if name in model.metadata},
        "files": [file.to_json() for file in files],
    }


def importance_part(importance: Importance) -> dict[str, Any]:
    """What a manifest says of the data that weights were weighed with, and by which codes were chosen."""
    return {
        "file": importance.source or None,
        "sha256": importance.sha256 or None,
        "datasets": [plain_name(dataset) for dataset in importance.datasets],
        "tensors": len(importance.values),
        "chunks": importance.chunks,
        "chunk_size": importance.chunk_size,
        "optimized": _optimized(importance.optimization),
    }


def _optimized(optimization: Optimization | None) -> dict[str, Any] | None:
    """How codes were chosen: enough, with the statistics and the checkpoint, to choose them again."""
    if optimization is None:
        return None
    from ..quant.optimize import METHOD

    return {"method": METHOD, "matrices": optimization.to_manifest()}


def requantized_part(
    origin: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    model: Model,
    files: Sequence[SourceFile],
    importance: Importance | None = None,
) -> dict[str, Any]:
    """What the manifests of files made from one GGUF share.

    ``files`` are the GGUF's. ``origin`` is its own manifest, where it has one: its checkpoint is theirs, too,
    and of its options those that say what the file holds besides weights stand.
    """
    before = origin or {"source": {"name": files[0].name, "files": [file.to_json() for file in files]}}
    earlier = before.get("options", {})
    return {
        "source": before["source"],
        MADE_FROM: [file.to_json() for file in files],
        "architecture": model.arch,
        "parameters": parameters(model),
        "options": {**options, **{key: earlier[key] for key in HELD if key in earlier}},
        "versions": versions(),
        "notes": [asdict(note) for note in model.notes],
        "companions": before.get("companions", []),
        "importance": None if importance is None else importance_part(importance),
        "proof": {"verdict": "not run"},
    }


def _companion(beside: CompanionFile) -> dict[str, Any]:
    return {
        "file": beside.path.name,
        "architecture": beside.arch,
        "bytes": beside.bytes,
        "sha256": beside.sha256,
        "weights": beside.weights,
        "keys": dict(beside.keys),
    }


def manifest_text(plan: FilePlan, output: Output, common: Mapping[str, Any]) -> str:
    """The manifest of one file, as it stands in ``<file>.manifest.json`` before the proof.

    File names that are not UTF-8 leave half surrogates; written with ``backslashreplace`` they become JSON's
    own escapes.
    """
    head = {
        "file": plan.path.name,
        "type": output.type,
        "bytes": output.bytes,
        "bits_per_weight": round(output.bits_per_weight, 4),
    }
    tensors = {info.name: format.name for info, format in zip(plan.tensors, plan.formats, strict=True)}
    chosen = {} if output.choice is None else {"choice": output.choice.to_manifest()}
    return manifest_json({"output": head, **common, **chosen, "tensors": tensors})


def record_proof(manifest: Path, proof: Mapping[str, Any], files: Sequence[SourceFile] = ()) -> None:
    """Put the proof into its place in a manifest, and the hashes of the ``files`` it is about.

    Whoever publishes them later can tell by these that they are still the files that were proven.
    """
    content = json.loads(manifest.read_text("utf-8"))
    listed = {file["name"]: file for file in content["output"].get("files", [])}
    listed |= {file.name: file.to_json() for file in files}
    output = {**content["output"], **({"files": list(listed.values())} if listed else {})}
    text = manifest_json({**content, "output": output, "proof": dict(proof)})
    with atomic_file(manifest, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def manifest_json(content: Mapping[str, Any]) -> str:
    """The content as JSON text, the way manifests are written."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
