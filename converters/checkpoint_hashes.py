"""Whether the checkpoint is still the one the manifest beside a file names."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import InputError
from ..core.input_files import file_sha256, quoted
from ..core.progress import Progress, silent
from ..hub.evidence import check_contents
from .recorded import IGNORE, RecordedFile, recorded_files
from .targets import manifest_path

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
                check_contents(self._folder / name, digest)
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
                    check_contents(part, digest)
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


def _decides(name: str) -> bool:
    return _DECIDING.fullmatch(name) is not None or _WEIGHTS.fullmatch(name) is not None


def _listed(names: list[str]) -> str:
    shown = [quoted(name)[1:-1] for name in names[:_NAMES_SHOWN]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
