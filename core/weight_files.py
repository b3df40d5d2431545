"""Which files of a folder hold its weights, and whether an index agrees with them."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError
from .input_files import DOWNLOAD_HINT, is_plain_name, quoted, read_json

EXPECTED = (
    "model.safetensors, model.safetensors.index.json, pytorch_model.bin or pytorch_model.bin.index.json"
)

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

UNREADABLE = (
    ("adapter_model.*", "a LoRA adapter, not a whole model", "merge it into its base model and save that"),
    (
        "consolidated*",
        "weights in Meta's or Mistral's own layout",
        "get the Hugging Face version of the model",
    ),
    (
        "tf_model*.h5",
        "TensorFlow weights",
        "save the model as safetensors with transformers before version 5",
    ),
    (
        "flax_model*.msgpack",
        "Flax weights",
        "save the model as safetensors with transformers before version 5",
    ),
    (
        "*.gguf",
        "a GGUF file",
        ("use that file with kconv run or kconv quantize, or get the checkpoint it was made from"),
    ),
    ("*.onnx", "an ONNX model", "get the checkpoint it was exported from"),
    ("rust_model.ot", "rust-bert weights", "get the PyTorch version of the model"),
    ("*.npz", "NumPy or MLX weights", "get the Hugging Face version of the model"),
    ("*.ckpt*", "a training checkpoint", "save the model with save_pretrained()"),
    ("*.pt", "PyTorch weights with unknown contents", "save the model with save_pretrained()"),
    ("*.pth", "PyTorch weights with unknown contents", "save the model with save_pretrained()"),
)


@dataclass(frozen=True)
class WeightList:
    """Names of the weight files in ``folder``, in order; what the index says is where, if there is one."""

    files: tuple[str, ...]
    index: str | None = None
    where: Mapping[str, str] | None = None


def find_weights(folder: Path) -> WeightList:
    """Choose the weight files of a folder. Raises CheckpointError if there are none, or unclear ones."""
    names = sorted(os.listdir(folder))
    for name in STANDARD:
        if name in names:
            return _read_index(folder, name) if name.endswith(".json") else WeightList((name,))
    for kind in ("safetensors", "bin"):
        candidates = [
            name for name in names if name.endswith(f".{kind}") and not _matches(name, NOT_THE_MODEL)
        ]
        if candidates:
            return WeightList(_only(folder, candidates))
    for pattern, what, hint in UNREADABLE:
        if matches := fnmatch.filter(names, pattern):
            raise CheckpointError(f"{folder / matches[0]} is {what}; expected {EXPECTED}", hint=hint)
    raise CheckpointError(f"{folder} contains no weights; expected {EXPECTED}", hint=DOWNLOAD_HINT)


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
            f"{_some(candidates)}",
            hint="keep only the model's own files, or add its index",
        )
    stem, count, kind = models.pop()
    wanted = [f"{stem}-{part:05}-of-{count}.{kind}" for part in range(1, int(count) + 1)]
    if missing := sorted(set(wanted) - set(candidates)):
        raise CheckpointError(
            f"{folder}: {len(missing)} of {len(wanted)} weight files are missing: {_some(missing)}",
            hint=DOWNLOAD_HINT,
        )
    if extra := sorted(set(candidates) - set(wanted)):
        raise CheckpointError(
            f"{folder}: {_some(extra)} is numbered beyond the last of {len(wanted)} weight files"
        )
    return tuple(wanted)


def _read_index(folder: Path, name: str) -> WeightList:
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
    if missing := [file for file in files if not os.path.lexists(folder / file)]:
        raise CheckpointError(
            f"{folder / name} names {len(files)} weight files, of which {len(missing)} are missing: "
            f"{_some(missing)}",
            hint=DOWNLOAD_HINT,
        )
    return WeightList(files, name, where)


def check_index(folder: Path, weights: WeightList, file_of: Mapping[str, str]) -> None:
    """Compare the index with ``held``, the file each tensor is in. Raises CheckpointError if they differ."""
    if weights.where is None:
        return
    path = folder / str(weights.index)
    if absent := [name for name in weights.where if name not in file_of]:
        raise CheckpointError(
            f"{path} names {len(absent)} tensors that are in no weight file: {_some(absent)}",
            hint=DOWNLOAD_HINT,
        )
    if unnamed := [name for name in file_of if name not in weights.where]:
        raise CheckpointError(
            f"{path} does not name {len(unnamed)} tensors that are in the weight files: {_some(unnamed)}",
            hint="the index and the files are of different versions; download the checkpoint again",
        )
    if moved := [name for name, file in weights.where.items() if file_of[name] != file]:
        raise CheckpointError(
            f"{path} places {len(moved)} tensors in the wrong files: {_some(moved)}",
            hint="the index and the files are of different versions; download the checkpoint again",
        )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(quoted(name)[1:-1] for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
