"""Whether the checkpoint is still the one the manifest beside a file names."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..converters.manifest import versions
from ..converters.recorded import IGNORE, MADE_FROM, RecordedFile, recorded_files
from ..converters.targets import manifest_path
from ..core.checkpoint import Checkpoint
from ..core.errors import InputError
from ..core.gguf_file import GgufHeader
from ..core.input_files import file_sha256, quoted
from ..core.progress import Progress, silent
from .proof import Finding

_NAMES_SHOWN = 8

# What decides a conversion besides the weights. Not the card and the licence, from which come only general.*
# keys, and not the index, which says no more than in which file a tensor lies.
_DECIDING = re.compile(
    r"config\.json|generation_config\.json|tokenizer.*\.(json|model)|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.json|merges\.txt|.*\.model|chat_template\.(jinja|json)"
)
_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth)")


class CheckpointHashes(threading.Thread):
    """SHA-256 of what decides a conversion, computed in the background and compared with a manifest's.

    A context manager; ``result`` waits, leaving it early stops the hashing. The constructor raises InputError
    where files of the manifest are missing or have another size, or where there are new ones; ``result``
    where contents differ. Without a manifest files are only hashed. ``artifact_sha256`` are, by name, those
    of the file itself or of its parts (in a folder by their paths), which come last; they are there once
    ``result`` has returned.
    """

    def __init__(
        self,
        artifact: Path,
        manifest: Mapping[str, Any] | None,
        checkpoint: Checkpoint,
        parts: Sequence[Path] = (),
    ) -> None:
        super().__init__(name="kconv-sha256", daemon=True)
        self._folder, self._manifest = checkpoint.folder, manifest_path(artifact).name
        place = artifact if artifact.is_dir() else artifact.parent
        self._parts = {os.path.relpath(part, place): part for part in parts or (artifact,)}
        self.artifact_sha256: dict[str, str] = {}
        self._recorded: dict[str, RecordedFile] = {}
        weights = {path.relative_to(self._folder).as_posix() for path in checkpoint.weight_files}
        names = weights | {path.name for path in self._folder.iterdir() if _DECIDING.fullmatch(path.name)}
        if manifest is not None:
            files = recorded_files(manifest, manifest_path(artifact))
            self._recorded = {file.name: file for file in files if _decides(file.name)}
            if self._recorded:  # else it was made from a GGUF of which no more is known
                self._refuse_at_sight(names)
        sizes = {name: (self._folder / name).stat().st_size for name in names if self._has(name)}
        # Small files first: what can be told soon is told soon.
        self._sizes = dict(sorted(sizes.items(), key=lambda item: (item[1], item[0])))
        self._before = self._done = 0  # bytes
        self._found: list[RecordedFile] = []
        self._different: list[str] = []
        self._failure: BaseException | None = None
        self._stopped = threading.Event()

    def _has(self, name: str) -> bool:
        return (self._folder / name).is_file()

    def _refuse_at_sight(self, names: set[str]) -> None:
        changed, missing = [], []
        for file in self._recorded.values():
            if not self._has(file.name):
                missing.append(file.name)
            elif (self._folder / file.name).stat().st_size != file.bytes:
                changed.append(file.name)
        new = sorted(name for name in names - self._recorded.keys() if self._has(name))
        if missing or new or changed:
            raise self._refusal(changed, missing, new)

    def _refusal(self, changed: list[str], missing: list[str], new: list[str]) -> InputError:
        kinds = ((changed, "changed"), (missing, "missing"), (new, "new"))
        listed = "; ".join(f"{word}: {_listed(names)}" for names, word in kinds if names)
        return InputError(
            f"{self._folder} is not, or no longer, the checkpoint that was converted "
            f"({self._manifest}): {listed}",
            hint=f"pass that checkpoint with --against, restore these files, or convert again; {IGNORE}",
        )

    def __enter__(self) -> CheckpointHashes:
        self.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Hash file after file; a weight file that differs says enough to skip those after it."""
        try:
            for name, size in self._sizes.items():
                digest = file_sha256(self._folder / name, self._count, stopped=self._stopped.is_set)
                self._before = self._done
                self._found.append(RecordedFile(name, size, digest))
                recorded = self._recorded.get(name)
                if recorded is not None and recorded.sha256 != digest:
                    self._different.append(name)
                    if not _DECIDING.fullmatch(name):
                        return
            if not self._different:
                for name, part in self._parts.items():
                    digest = file_sha256(part, self._count, stopped=self._stopped.is_set)
                    self._before = self._done
                    self.artifact_sha256[name] = digest
        except BaseException as error:  # handed to the thread that waits
            self._failure = error

    def _count(self, stage: str, done: int, total: int) -> None:
        self._done = self._before + done

    def result(self, progress: Progress = silent) -> list[dict[str, Any]]:
        """Name, bytes and sha256 of every file, by name; waits until all are hashed.

        Raises InputError naming those whose contents differ, and what reading them raised.
        """
        total = sum(self._sizes.values()) + sum(part.stat().st_size for part in self._parts.values())
        while self.is_alive():
            progress("hash", self._done, total)
            self.join(0.1)  # so that Ctrl-C gets through
        if self._failure is not None:
            raise self._failure
        if self._different:
            raise self._refusal(self._different, [], [])
        return [asdict(file) for file in sorted(self._found, key=lambda file: file.name)]


def evidence(
    compared: dict[str, Any], hashes: CheckpointHashes, options: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """What was compared, with the hashes, for which this waits, and the options."""
    compared["checkpoint"]["files"] = hashes.result(progress)
    digests = hashes.artifact_sha256
    compared["artifact"]["sha256"] = digests if len(digests) > 1 else next(iter(digests.values()))
    return {**compared, "options": options}


def _decides(name: str) -> bool:
    return _DECIDING.fullmatch(name) is not None or _WEIGHTS.fullmatch(name) is not None


def changed_after_conversion(header: GgufHeader, manifest: Mapping[str, Any]) -> tuple[Finding, ...]:
    """A finding, not grave by itself, where the file has not the size it was written with."""
    written = manifest["output"]["bytes"]
    if header.size == written:
        return ()
    message = "the file does not have the size in its manifest: it was changed or replaced after conversion"
    return (Finding("file", message, f"{written} bytes", f"{header.size} bytes", grave=False),)


def changed_files(
    folder: Path, written: Sequence[RecordedFile], digests: Mapping[str, str]
) -> tuple[Finding, ...]:
    """Findings, not grave by themselves, on files of a folder that are not as they were written.

    ``digests`` are the SHA-256 of those that are there, by their paths in the folder.
    """
    findings = []
    for file in written:
        digest = digests.get(file.name)
        if digest is None:
            message = f"{file.name} is listed in the manifest, but not in the folder"
            findings.append(Finding(file.name, message, f"{file.bytes} bytes", "missing", grave=False))
            continue
        size = (folder / file.name).stat().st_size
        if size != file.bytes:
            change, expected, actual = "another size", f"{file.bytes} bytes", f"{size} bytes"
        elif file.sha256 not in (None, digest):
            change, expected, actual = "other contents", f"{file.sha256}", digest
        else:
            continue
        message = f"{file.name} has {change} than in the manifest: it was changed after conversion"
        findings.append(Finding(file.name, message, expected, actual, grave=False))
    return tuple(findings)


def same_tools(manifest: Mapping[str, Any] | None) -> bool:
    """Whether the file was made by a kconv with this very libggml, so that equal weights give equal bytes.

    Not if it was made from another GGUF, where they may have been rounded before.
    """
    return _same(manifest, ("llama-cpp-python",)) and MADE_FROM not in (manifest or {})


def same_vocabulary_tools(manifest: Mapping[str, Any] | None) -> bool:
    """Whether the file was made by this very kconv with these tokenizers, so that all entries are equal."""
    return _same(manifest, ("kconv", "tokenizers", "sentencepiece"))


def _same(manifest: Mapping[str, Any] | None, packages: tuple[str, ...]) -> bool:
    if manifest is None or "kconv" not in manifest["versions"]:
        return False
    here = versions()
    return all(manifest["versions"].get(name) == here[name] for name in packages)


def _listed(names: list[str]) -> str:
    shown = [quoted(name)[1:-1] for name in names[:_NAMES_SHOWN]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
