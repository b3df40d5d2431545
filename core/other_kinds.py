"""Files of other kinds given for a GGUF: what they are, and what is done with them."""

from __future__ import annotations

import shlex
from pathlib import Path

from .errors import GgufError, UsageError

_OF_CHECKPOINTS = (".safetensors", ".bin", ".json", ".pt", ".pth", ".model")


def refuse_other_kind(path: Path) -> None:
    """Raise an error for a file that does not begin as a GGUF does and is known by its ending.

    GgufError for the graph of an ONNX folder, UsageError for a part of a checkpoint.
    """
    ending = path.suffix.lower()
    if ending == ".onnx":
        raise GgufError(
            f"{path} is an ONNX graph, whose weights and tokenizer are in other files",
            hint="kconv run, verify and inspect take the whole folder",
        )
    if ending in _OF_CHECKPOINTS:
        raise UsageError(
            f"{path} is part of a checkpoint, not a GGUF file",
            hint=f"make one of the folder: kconv to-gguf {shlex.quote(str(path.parent))} -q q4_k_m",
        )
