"""Opening a checkpoint folder: its configuration, and the place, shape and type of every tensor; no data."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from .byte_source import LocalFile
from .checkpoint import Checkpoint
from .elsewhere import Elsewhere
from .errors import CheckpointError, EnvironmentProblem, UsageError
from .input_files import (
    DOWNLOAD_HINT,
    TEXT_LIMIT,
    file_sha256,
    is_plain_name,
    parse_json,
    quoted,
    read_bytes,
    read_json,
    read_text,
)
from .no_weights import weights_below
from .safetensors_file import open_safetensors
from .side_files import side_files
from .tensor import Tensor
from .weight_files import check_index, find_weights

__all__ = [
    "DOWNLOAD_HINT",
    "TEXT_LIMIT",
    "file_sha256",
    "hub_origin",
    "is_plain_name",
    "open_checkpoint",
    "parse_json",
    "quoted",
    "read_bytes",
    "read_json",
    "read_text",
]

COMMIT = re.compile(r"[0-9a-f]{40}")


def open_checkpoint(source: str | Path | Elsewhere) -> Checkpoint:
    """Open a Hugging Face folder: read config.json and the headers of its weight files, wherever they lie.

    Weights are safetensors or PyTorch files, one or several with their index; safetensors are preferred.
    Files may be links (the Hub's cache). What is odd and harmless
    (a stale index) becomes a note. Tensors come in the order of files, and of places within each.
    Nothing in the folder is executed. Raises CheckpointError, and EnvironmentProblem where permission is
    missing.
    """
    place = source if isinstance(source, Elsewhere) else Elsewhere(Path(source))
    folder = _folder(place.folder)
    beside = side_files(folder)  # before anything is read
    config = read_json(folder, "config.json")
    if config is None:
        raise _no_config(folder)
    weights = find_weights(folder, place.weights.keys())
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    aliases: dict[str, str] = {}
    scalars: dict[str, Tensor] = {}
    file_of: dict[str, str] = {}
    files = []
    for name in weights.files:
        if name.endswith(".safetensors"):
            open_file = open_safetensors
        else:
            from .torch_file import open_torch as open_file
        opened = open_file(folder / name, place.weights.get(name, LocalFile))
        files.append(opened.file)
        for tensor in (*opened.tensors, *opened.dropped):
            if tensor in file_of:
                raise CheckpointError(
                    f"{folder}: tensor {quoted(tensor)} is in both {file_of[tensor]} and {name}",
                    hint="the files are of different versions; download the checkpoint again",
                )
            file_of[tensor] = name
        tensors.update(opened.tensors)
        dropped.update(opened.dropped)
        aliases.update(opened.aliases)
        scalars.update(opened.scalars)
    notes, unnamed = check_index(weights, file_of)
    unindexed = {name: tensors.pop(name) for name in unnamed & tensors.keys()}
    aliases = {name: other for name, other in aliases.items() if name in tensors and other in tensors}
    _refuse_quantized(folder, config, dropped)
    if not tensors:
        raise CheckpointError(f"{folder}: the weight files contain no weights: {', '.join(weights.files)}")
    paths = tuple(folder / name for name in weights.files)
    found = (config, tensors, paths, dropped, aliases, tuple(files), beside)
    return Checkpoint(folder, *found, scalars, unindexed, (*weights.notes, *notes), place.stream)


def _folder(source: Path) -> Path:
    if source.is_dir():
        try:
            names = os.listdir(source)
        except OSError as error:
            raise EnvironmentProblem(f"cannot list {source}: {error.strerror}") from error
        if "snapshots" in names and "config.json" not in names:
            snapshots = sorted(path for path in (source / "snapshots").glob("*") if path.is_dir())
            raise CheckpointError(
                f"{source} is the Hub cache of all revisions of a model, expected one revision",
                hint=f"pass {snapshots[0]}" if snapshots else DOWNLOAD_HINT,
            )
        return source
    if source.is_file():
        if source.suffix.lower() == ".gguf":
            raise UsageError(
                f"{source} is a GGUF file, expected a checkpoint folder with config.json and weights",
                hint=f"to make other types of the file: kconv quantize {shlex.quote(str(source))} -q q4_k_m; "
                "all else needs the checkpoint it was made from",
            )
        raise UsageError(
            f"{source} is a file, expected a checkpoint folder with config.json and weights",
            hint=f"pass the folder {source.parent}"
            if (source.parent / "config.json").is_file()
            else "give the folder written by save_pretrained() or `hf download`",
        )
    raise CheckpointError(
        f"{source} does not exist, expected a checkpoint folder with config.json and weights",
        hint=_meant(source),
    )


def _meant(source: Path) -> str:
    """What to do about a folder that does not exist: one of nearly that name, or the Hub."""
    for meant in (source.name.strip(" \t\r\n"), source.name.strip("\"'"), os.path.expanduser(source)):
        with contextlib.suppress(OSError, ValueError):
            if meant != source.name and (source.parent / meant / "config.json").is_file():
                return f"did you mean {source.parent / meant}?"
    with contextlib.suppress(OSError):
        beside = [path.name for path in source.parent.iterdir() if (path / "config.json").is_file()]
        near = difflib.get_close_matches(source.name, beside, n=1, cutoff=0.8)
        if near:
            return f"did you mean {source.parent / near[0]}?"
    if re.fullmatch(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+", str(source)):
        return f"to get it from the Hub: hf download {source} --local-dir {source.name}"
    return "check the path; a repository of the Hub is named ORG/NAME"


def _no_config(folder: Path) -> CheckpointError:
    if (folder / "adapter_config.json").exists():
        return CheckpointError(
            f"{folder} contains a LoRA adapter, not a whole model; expected config.json and weights",
            hint="merge it into its base model (`merge_and_unload()` of peft) and save that",
        )
    if (below := weights_below(folder, sorted(os.listdir(folder)))) is not None:
        return below
    if (folder / "params.json").exists():
        return CheckpointError(
            f"{folder} is in Meta's or Mistral's own layout; expected config.json and weights",
            hint="get the Hugging Face version of the model",
        )
    return CheckpointError(
        f"{folder} has no config.json, expected a Hugging Face folder with config.json and weights",
        hint="give the folder written by save_pretrained() or `hf download`, or complete the download",
    )


_WAYS_OUT = {
    "bitsandbytes": "load it with transformers, call `model.dequantize()` and save that, or use the "
    "unquantized checkpoint it was made from",
    "gptq": "use the unquantized checkpoint it was made from: kconv quantizes that itself (-q q4_k_m)",
    "awq": "use the unquantized checkpoint it was made from: kconv quantizes that itself (-q q4_k_m)",
}
_UNQUANTIZED = "use the unquantized checkpoint it was made from"
_PACKED = (".weight", ".qweight", ".weight_packed", "_blocks", ".W_q", ".codes", "._data", ".weight_q")


def _refuse_quantized(folder: Path, config: Mapping[str, object], dropped: Mapping[str, str]) -> None:
    """Integer tensors under a weight's name mean that the checkpoint is already quantized."""
    integers = ("I", "U")
    packed = [name for name in dropped if name.endswith(_PACKED) and dropped[name].startswith(integers)]
    if packed:
        settings = config.get("quantization_config")
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        by = f" ({quoted(method)})" if method else ""
        raise CheckpointError(
            f"{folder} is already quantized{by}: {quoted(packed[0])} is {dropped[packed[0]]}; "
            "kconv reads F32, F16, BF16 and F8",
            hint=_WAYS_OUT.get(method, _UNQUANTIZED) if isinstance(method, str) else _UNQUANTIZED,
        )


def hub_origin(folder: Path) -> tuple[str | None, str | None]:
    """The repository (``org/name``) and commit a folder came from on the Hub, as far as recorded.

    Knows the layouts huggingface_hub writes: its cache (``models--org--name/snapshots/<commit>``), and
    ``--local-dir``, which keeps the commit alone (``.cache/huggingface/download/config.json.metadata``).
    """
    for path in (Path(os.path.abspath(folder)), folder.resolve()):
        cache = path.parent.parent.name
        if COMMIT.fullmatch(path.name) and path.parent.name == "snapshots" and cache.startswith("models--"):
            return cache.removeprefix("models--").replace("--", "/", 1), path.name
    download = folder / ".cache" / "huggingface" / "download"
    try:
        text = read_text(download, "config.json.metadata", limit=4096)
    except (CheckpointError, EnvironmentProblem):
        return None, None
    first = (text or "").partition("\n")[0].strip()
    return None, first if COMMIT.fullmatch(first) else None
