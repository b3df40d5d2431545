"""Which files of a folder hold its weights, and whether an index agrees with them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .errors import CheckpointError
from .input_files import DOWNLOAD_HINT, is_plain_name, quoted, read_json
from .model import Note
from .no_weights import no_weights

# In the order they are looked for. transformers, too, prefers safetensors and one file to several.
STANDARD = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)

NUMBERED = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})\.(?P<kind>safetensors|bin)")

# Files that end in .safetensors or .bin and are not the model.
NOT_THE_MODEL = (
    "adapter_model.*",
    "consolidated*",
    "training_args.bin",
    "optimizer*",
    "scheduler*",
    "scaler*",
    "rng_state*",
    "random_states*",
)


@dataclass(frozen=True)
class WeightList:
    """Paths of the weight files from ``folder``, in order; what the index says is where, if there is one."""

    files: tuple[str, ...]
    index: str | None = None
    where: Mapping[str, str] | None = None
    notes: tuple[Note, ...] = ()


def find_weights(folder: Path, elsewhere: Collection[str] = ()) -> WeightList:
    """Choose the weight files of a folder. Raises CheckpointError if there are none, or unclear ones.

    Files named ``elsewhere`` belong to it without lying there.
    """
    names = sorted({*os.listdir(folder), *elsewhere})
    for name in STANDARD:
        if name in names:
            if (folder / name).is_dir() and folder.name not in STANDARD:
                return _inside(folder, name)
            return _read_index(folder, name, names) if name.endswith(".json") else WeightList((name,))
    for kind in ("safetensors", "bin"):
        if candidates := _candidates(names, kind):
            return WeightList(_only(folder, candidates))
    raise no_weights(folder, names)


def _inside(folder: Path, name: str) -> WeightList:
    """The weights in a folder of a weight file's name, as DeepSpeed's zero_to_fp32.py makes one."""
    if not any((folder / name).glob("*.*")):
        raise CheckpointError(f"{folder / name} is an empty folder, expected a file", hint=DOWNLOAD_HINT)
    found = find_weights(folder / name)
    where = found.where and {tensor: f"{name}/{file}" for tensor, file in found.where.items()}
    message = f"{name} is a folder (as zero_to_fp32.py makes it); the weight files in it are read"
    return WeightList(
        tuple(f"{name}/{file}" for file in found.files),
        found.index and f"{name}/{found.index}",
        where,
        (Note("weights-in-folder", message), *found.notes),
    )


def _candidates(names: Sequence[str], kind: str) -> list[str]:
    return [name for name in names if name.endswith(f".{kind}") and not _matches(name, NOT_THE_MODEL)]


def is_not_the_model(name: str) -> bool:
    """Whether a file of that name holds an adapter, the state of a training, another layout."""
    return _matches(name, NOT_THE_MODEL)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _only(folder: Path, candidates: list[str]) -> tuple[str, ...]:
    """The one file, or all numbered parts of one model (an index may be missing)."""
    if len(candidates) == 1 and not NUMBERED.fullmatch(candidates[0]):
        return (candidates[0],)
    parts = [match for name in candidates if (match := NUMBERED.fullmatch(name))]
    models = {(match["stem"], match["parts"], match["kind"]) for match in parts}
    if len(parts) != len(candidates) or len(models) != 1:
        raise CheckpointError(
            f"{folder} contains several weight files and no index that names those of the model: "
            f"{some(candidates)}",
            hint="keep only the model's own files, or add its index",
        )
    stem, count, kind = models.pop()
    wanted = [f"{stem}-{part:05}-of-{count}.{kind}" for part in range(1, int(count) + 1)]
    if missing := sorted(set(wanted) - set(candidates)):
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(wanted)} weight files are missing: {some(missing)}",
            hint=DOWNLOAD_HINT,
        )
    if extra := sorted(set(candidates) - set(wanted)):
        raise CheckpointError(
            f"{folder}: {some(extra)} is numbered beyond the last of {len(wanted)} weight files"
        )
    return tuple(wanted)


def _read_index(folder: Path, name: str, names: Sequence[str]) -> WeightList:
    where = (read_json(folder, name) or {}).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise CheckpointError(f"{folder / name} has no weight_map of tensor names to files")
    ending = ".safetensors" if "safetensors" in name else ".bin"
    for tensor, file in where.items():
        if not is_plain_name(file) or not file.endswith(ending):
            raise CheckpointError(
                f"{folder / name} places tensor {quoted(tensor)} in {quoted(file)}, expected the plain name "
                f"of a {ending} file in the same folder"
            )
    files = tuple(sorted(set(where.values())))
    missing = [file for file in files if file not in names]
    whole = _without_index(folder, name, names)
    if whole is not None and (missing or set(files) < set(whole.files)):
        if both := [file for file in files if file not in missing and file not in whole.files]:
            raise CheckpointError(
                f"{folder / name} names {len(missing)} files that are missing, and beside {some(both)}, "
                f"which it names, {some(whole.files)} hold a whole model",
                hint="keep the files of one of the two models, and its index or none",
            )
        named = f"names {some(missing)}, which are not here" if missing else f"names only {some(files)}"
        message = f"{name} is stale and ignored: it {named}, while {some(whole.files)} hold a whole model"
        return replace(whole, notes=(Note("stale-index", message, warning=True), *whole.notes))
    if missing:
        raise CheckpointError(
            f"{folder / name} names {len(files)} weight files, of which {len(missing)} are missing: "
            f"{some(missing)}",
            hint=DOWNLOAD_HINT,
        )
    return WeightList(files, name, where)


def _without_index(folder: Path, index: str, names: Sequence[str]) -> WeightList | None:
    """The weights that are whole without that index, if there are any."""
    for kind in ("safetensors", "bin"):
        numbered = [name for name in _candidates(names, kind) if NUMBERED.fullmatch(name)]
        groups: dict[tuple[str, str], list[str]] = {}
        for name in numbered:
            match = NUMBERED.fullmatch(name)
            assert match is not None
            groups.setdefault((match["stem"], match["parts"]), []).append(name)
        whole = [sorted(group) for (_, parts), group in groups.items() if _complete(group, int(parts))]
        if len(whole) == 1:
            return WeightList(tuple(whole[0]))
    others = [name for name in names if name in STANDARD[STANDARD.index(index) + 1 :]]
    if others and not others[0].endswith(".json"):
        return WeightList((others[0],))
    return None


def _complete(names: Sequence[str], parts: int) -> bool:
    numbers = {int(match["part"]) for name in names if (match := NUMBERED.fullmatch(name))}
    return len(numbers) == parts == len(names) and numbers == set(range(1, parts + 1))


def check_index(weights: WeightList, file_of: Mapping[str, str]) -> tuple[tuple[Note, ...], frozenset[str]]:
    """Compare the index with ``file_of``, the file each tensor is in: notes, and tensors it does not name.

    The files say what they hold, so an index that differs is no reason to refuse them. Whether what it does
    not name is needed, only the model tells.
    """
    if weights.where is None:
        return (), frozenset()
    notes = []
    if absent := [name for name in weights.where if name not in file_of]:
        message = f"{weights.index} names tensors that are in no weight file: {some(absent)}"
        notes.append(Note("index-beyond-files", message))
    if moved := [name for name, file in weights.where.items() if file_of.get(name, file) != file]:
        message = (
            f"{weights.index} is stale: it places {len(moved)} tensors in the wrong files, {some(moved)}"
        )
        notes.append(Note("stale-index", message, warning=True))
    return tuple(notes), frozenset(name for name in file_of if name not in weights.where)


def some(names: Sequence[str]) -> str:
    """Names out of a file, the first five of them."""
    shown = ", ".join(quoted(name)[1:-1] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
