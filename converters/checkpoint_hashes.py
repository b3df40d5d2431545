"""Whether the checkpoint is still the one the manifest beside a file names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import CheckpointError, InputError
from ..core.input_files import InputFile, quoted
from ..core.piece_sums import changed_ranges
from ..core.progress import Progress, silent
from ..core.safetensors_file import tensors_within
from .hashes import Hashes, SourceFile
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


class CheckpointHashes(Hashes):
    """SHA-256 of what decides a conversion, computed in the background and compared with a manifest's.

    The constructor raises InputError where files of the manifest are missing or have another size, or where
    there are new ones; ``result`` where contents differ. Without a manifest files are only hashed.
    ``artifact`` are, by name, the file itself or its parts (in a folder by their paths), which come last;
    they are there once ``result`` has returned.
    """

    def __init__(
        self,
        artifact: Path,
        manifest: Mapping[str, Any] | None,
        checkpoint: Checkpoint,
        parts: Sequence[Path] = (),
        *,
        rehash: bool = False,
    ) -> None:
        self._folder, self._manifest = checkpoint.folder, manifest_path(artifact).name
        place = artifact if artifact.is_dir() else artifact.parent
        own = {os.path.relpath(part, place): part for part in parts or (artifact,)}
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
        self._names = [name for _, name in sorted((size, name) for name, size in sizes.items())]
        self._different: list[str] = []
        self._places: dict[str, list[tuple[int, int]]] = {}  # where they differ, if that is known
        self.artifact: dict[str, SourceFile] = {}
        mine = [(name, self._folder / name) for name in self._names]
        super().__init__([*mine, *own.items()], rehash=rehash)

    def in_pieces(self, name: str, file: InputFile) -> bool:
        """Whether the manifest has the sums of its pieces."""
        recorded = self._recorded.get(name) if len(self._found) < len(self._names) else None
        return recorded is not None and bool(recorded.pieces) and recorded.bytes == file.size

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

    def _with_tensors(self, name: str) -> str:
        """A changed file's name, with its tensors that may be others where the sums of pieces tell."""
        ranges = self._places.get(name)
        if not ranges or not name.endswith(".safetensors"):
            return name
        try:
            tensors = tensors_within(self._folder / name, ranges)
        except CheckpointError:  # its header is what was changed
            return name
        return f"{name} (in {_listed(tensors, 3)})" if tensors else name

    def _refusal(self, changed: list[str], missing: list[str], new: list[str]) -> InputError:
        kinds = ((changed, "changed"), (missing, "missing"), (new, "new"))
        listed = "; ".join(f"{word}: {_listed(names)}" for names, word in kinds if names)
        return InputError(
            f"{self._folder} is not, or no longer, the checkpoint that was converted "
            f"({self._manifest}): {listed}",
            hint=f"pass that checkpoint with --against, restore these files, or convert again; {IGNORE}",
        )

    def is_enough(self, found: SourceFile) -> bool:
        """A weight file that differs says enough; after other files that differ the rest of them counts."""
        place = len(self._found)
        if place <= len(self._names):
            recorded = self._recorded.get(found.name)
            sums = found.sha256, found.pieces
            if recorded is not None and sums != (recorded.sha256 or "", recorded.pieces):
                self._different.append(found.name)
                self._places |= {found.name: changed_ranges(found.bytes, recorded.pieces, found.pieces)}
                if not _DECIDING.fullmatch(found.name):
                    return True
        return place >= len(self._names) and bool(self._different)

    def result(self, progress: Progress = silent) -> list[dict[str, Any]]:
        """Name, bytes, sha256 and how that is known of every file, by name; waits until all are hashed.

        Raises InputError naming those whose contents differ, and what reading them raised.
        """
        found = self.wait(progress)
        if self._different:
            raise self._refusal([self._with_tensors(name) for name in self._different], [], [])
        self.artifact = {file.name: file for file in found[len(self._names) :]}
        return [file.to_json() for file in sorted(found[: len(self._names)], key=lambda file: file.name)]


def _decides(name: str) -> bool:
    return _DECIDING.fullmatch(name) is not None or _WEIGHTS.fullmatch(name) is not None


def _listed(names: list[str], most: int = _NAMES_SHOWN) -> str:
    shown = [quoted(name)[1:-1] for name in names[:most]]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return ", ".join(shown) + more
