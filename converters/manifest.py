"""The manifest beside each file: where it came from, what was done, and what was proven.

Nothing in it depends on the clock, the host or the number of threads, so equal runs give equal manifests.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.files import atomic_file
from ..core.input_files import InputFile, file_sha256
from ..core.model import Model
from ..core.progress import Progress, silent
from ..core.reading import hub_origin
from ..core.side_files import check_side_files
from ..hub.evidence import check_contents
from ..quant import native
from ..quant.importance import Importance, plain_name
from ..vocab.parity import Parity
from .gguf_plan import FilePlan
from .mapping import parameters
from .recorded import MADE_FROM
from .results import CompanionFile, Options, Output
from .targets import checkpoint_name

_PACKAGES = ("kconv", "gguf", "llama-cpp-python", "numpy", "sentencepiece", "tokenizers")

# Options of the first conversion that say what every file made from its file holds.
_HELD = (
    "allow_tokenizer_mismatch",
    "disabled_adapters",
    "chat_template",
    "drop_extra_tokens",
    "words_as_text",
)


@dataclass(frozen=True)
class SourceFile:
    """A file of the checkpoint. ``sha256`` in hexadecimal digits."""

    name: str
    bytes: int
    sha256: str


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


def checkpoint_hashes(checkpoint: Checkpoint) -> SourceHashes:
    """Of what a conversion is made from: small files that decide or describe, and the weights.

    The weights are hashed as they are open, and the small files are held to what they were when the
    checkpoint was opened. Raises EnvironmentProblem where one was changed or removed since.
    """

    def check() -> None:
        check_side_files(checkpoint.folder, checkpoint.side_files)

    check()
    beside = [InputFile(path) for path in checkpoint.side_files if path not in checkpoint.weight_files]
    return SourceHashes([*beside, *checkpoint.opened], check, checkpoint.folder)


class SourceHashes(threading.Thread):
    """Hashes the source's files in the background, while their tensors are converted.

    Used as a context manager; leaving it early (a failure elsewhere) stops the hashing. ``check`` is called
    in the end and raises if what was read may not have been what was hashed. Files are named by their paths
    from ``folder``, or where there is none by their names.
    """

    def __init__(
        self,
        sources: Sequence[InputFile],
        check: Callable[[], None] = lambda: None,
        folder: Path | None = None,
    ) -> None:
        super().__init__(name="kconv-sha256", daemon=True)
        self._sources, self._check, self._folder = tuple(sources), check, folder
        self._before = self._done = 0  # bytes
        self._files: list[SourceFile] = []
        self._failure: BaseException | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> SourceHashes:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Hash file after file."""
        try:
            for file in self._sources:
                digest = file_sha256(file, self._count, stopped=self._stopped.is_set)
                check_contents(file.path, digest)
                path = file.path if self._folder is None else file.path.relative_to(self._folder)
                name = file.path.name if self._folder is None else path.as_posix()
                self._files.append(SourceFile(name, file.size, digest))
                self._before = self._done
        except BaseException as error:  # handed to the thread that waits
            self._failure = error

    def _count(self, stage: str, done: int, total: int) -> None:
        self._done = self._before + done

    def result(self, progress: Progress = silent) -> tuple[SourceFile, ...]:
        """All files, hashed; waits for them, and raises what hashing raised.

        Asked for when all has been read: EnvironmentProblem says that a file was changed meanwhile.
        """
        total = sum(file.size for file in self._sources)
        while self.is_alive():
            progress("hash", self._done, total)
            self.join(0.1)  # so that Ctrl-C gets through
        if self._failure is not None:
            raise self._failure
        for file in self._sources:
            file.check_unchanged()
        self._check()
        return tuple(self._files)


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
        "importance": None if importance is None else _importance(importance),
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
        "files": [asdict(file) for file in files],
    }


def _importance(importance: Importance) -> dict[str, Any]:
    return {
        "file": importance.source or None,
        "sha256": importance.sha256 or None,
        "datasets": [plain_name(dataset) for dataset in importance.datasets],
        "tensors": len(importance.values),
        "chunks": importance.chunks,
        "chunk_size": importance.chunk_size,
    }


def requantized_part(
    origin: Mapping[str, Any] | None, options: Mapping[str, Any], model: Model, files: Sequence[SourceFile]
) -> dict[str, Any]:
    """What the manifests of files made from one GGUF share.

    ``files`` are the GGUF's. ``origin`` is its own manifest, where it has one: its checkpoint is theirs, too,
    and of its options those that say what the file holds besides weights stand.
    """
    before = origin or {"source": {"name": files[0].name, "files": [asdict(file) for file in files]}}
    earlier = before.get("options", {})
    return {
        "source": before["source"],
        MADE_FROM: [asdict(file) for file in files],
        "architecture": model.arch,
        "parameters": parameters(model),
        "options": {**options, **{key: earlier[key] for key in _HELD if key in earlier}},
        "versions": versions(),
        "notes": [asdict(note) for note in model.notes],
        "companions": before.get("companions", []),
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
    head = {"file": plan.path.name, "type": output.type, "bytes": output.bytes}
    tensors = {info.name: format.name for info, format in zip(plan.tensors, plan.formats, strict=True)}
    return manifest_json({"output": head, **common, "tensors": tensors})


def record_proof(manifest: Path, proof: Mapping[str, Any]) -> None:
    """Put the proof into its place in a manifest."""
    text = manifest_json({**json.loads(manifest.read_text("utf-8")), "proof": dict(proof)})
    with atomic_file(manifest, force=True) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def manifest_json(content: Mapping[str, Any]) -> str:
    """The content as JSON text, the way manifests are written."""
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"
