"""Folders without weights kconv can read: what lies there instead, and what to do about it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import CheckpointError
from .input_files import DOWNLOAD_HINT, quoted

EXPECTED = (
    "model.safetensors, model.safetensors.index.json, pytorch_model.bin or pytorch_model.bin.index.json"
)

UNREADABLE = (
    (
        "adapter_model.*",
        "a LoRA adapter, not a whole model",
        "merge it into its base model (`merge_and_unload()` of peft) and save that",
    ),
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

_STATE = ("optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "training_args*")
_STEP = re.compile(r"(?:checkpoint|step|epoch|global_step|iter)[-_]?(\d+)")


def no_weights(folder: Path, names: Sequence[str]) -> CheckpointError:
    """The error for a folder whose ``names`` are not those of weights."""
    adapter, *others = UNREADABLE
    there = [name for name in names if not any(fnmatch.fnmatchcase(name, each) for each in _STATE)]
    nothing = CheckpointError(f"{folder} contains no weights; expected {EXPECTED}", hint=DOWNLOAD_HINT)
    return (
        _foreign(folder, there, [adapter]) or weights_below(folder, names) or _foreign(folder, there, others)
    ) or nothing


def _foreign(
    folder: Path, names: Sequence[str], kinds: Sequence[tuple[str, str, str]]
) -> CheckpointError | None:
    for pattern, what, hint in kinds:
        if matches := fnmatch.filter(names, pattern):
            return CheckpointError(f"{folder / matches[0]} is {what}; expected {EXPECTED}", hint=hint)
    return None


def _is_model(folder: Path) -> bool:
    """Whether a checkpoint may be there: a folder of ONNX files, made from one, is none."""
    if not (folder / "config.json").is_file():
        return False
    graphs = any(folder.glob("*.onnx")) or any(folder.glob("onnx/*.onnx"))
    return not graphs or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def weights_below(folder: Path, names: Sequence[str]) -> CheckpointError | None:
    """The error that says which folder in it to use, or how to gather what lies there; None: nothing does."""
    folders = [name for name in names if (folder / name).is_dir()]
    whole = [name for name in folders if _is_model(folder / name)]
    if whole:
        steps = sorted(whole, key=lambda name: int(match[1]) if (match := _STEP.fullmatch(name)) else -1)
        listed = ", ".join(quoted(name)[1:-1] for name in steps[-5:])
        more = f"{len(steps) - 5} more and " if len(steps) > 5 else ""
        best = f"{folder / steps[-1]}"
        last = _STEP.fullmatch(steps[-1])
        return CheckpointError(
            f"{folder} has no model of its own, but folders in it have: {more}{listed}",
            hint=f"give the one you want{', the last of them is' if last else ':'} {best}",
        )
    if "zero_to_fp32.py" in names or any(name.startswith("global_step") for name in folders):
        return CheckpointError(
            f"{folder} holds weights as DeepSpeed's ZeRO splits them among processes; expected {EXPECTED}",
            hint="gather them first: `python zero_to_fp32.py . pytorch_model.bin` in that folder",
        )
    sharded = [name for name in folders if any((folder / name).glob("*.distcp"))]
    if sharded or any(name.endswith(".distcp") for name in names):
        place = folder / sharded[0] if sharded else folder
        return CheckpointError(
            f"{place} holds weights as FSDP splits them among processes; expected {EXPECTED}",
            hint=f"merge them first: `accelerate merge-weights {place} {folder}`",
        )
    return None
