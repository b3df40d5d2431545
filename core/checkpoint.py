"""A checkpoint folder, opened but not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .input_files import Identity, InputFile
from .tensor import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder: its configuration, and its tensors by name, none of them read.

    ``weight_files`` are the files tensors lie in, in order. ``dropped`` names tensors of types that are
    never weights (bool masks, integer buffers, scalars), with their type; recipes may still insist on them.
    ``aliases`` names tensors that are the very bytes of an earlier one (tied weights in a PyTorch file);
    they are in ``tensors``, too. ``opened`` are the weight files as they are read, ``beside`` the other files
    that matter, each with what it was when the folder was opened (core/side_files.py).
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weight_files: tuple[Path, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    opened: tuple[InputFile, ...] = ()
    beside: Mapping[Path, Identity] = field(default_factory=dict)

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of that name."""
        return (self.folder / name).is_file()
