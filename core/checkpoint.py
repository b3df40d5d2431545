"""A checkpoint folder, opened but not read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .byte_source import Identity
from .elsewhere import Stream
from .input_files import InputFile
from .model import Note
from .side_files import check_side_files, side_files_after_unpickling
from .tensor import Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face folder: its configuration, and its tensors by name, none of them read.

    ``weight_files`` are the files tensors lie in, in order. ``dropped`` names tensors of types that are
    never weights (bool masks, integer buffers, scalars), with their type; families may still insist on them.
    ``aliases`` names tensors that are the very bytes of an earlier one (tied weights in a PyTorch file);
    they are in ``tensors``, too. ``opened`` are the weight files as they are read, ``side_files`` the other
    files that matter, each with what it was when the folder was opened (core/side_files.py). ``scalars`` are
    the numbers among the dropped, of the shape (1,). ``unindexed`` lie in the weight files, but the index
    does not name them. ``notes`` say what was found odd about the folder, and what was made of it. With a
    ``stream`` the weights lie on another machine, and reach this one while they are converted.

    In a pickle a checkpoint travels with absolute paths, sizes and times of change, as its tensors do: where
    it arrives, all files are opened anew, and EnvironmentProblem says which is not what it was.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    weight_files: tuple[Path, ...]
    dropped: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    opened: tuple[InputFile, ...] = ()
    side_files: Mapping[Path, Identity] = field(default_factory=dict)
    scalars: Mapping[str, Tensor] = field(default_factory=dict)
    unindexed: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[Note, ...] = ()
    stream: Stream | None = None

    def has(self, name: str) -> bool:
        """Whether the folder holds a file of that name."""
        return (self.folder / name).is_file()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.side_files:
            check_side_files(self.folder, self.side_files)
        folder = Path(os.path.abspath(self.folder))
        names = [path.relative_to(self.folder).as_posix() for path in self.weight_files]
        side_files = {path.name: identity[2:] for path, identity in self.side_files.items()}
        content = (self.config, self.tensors, self.dropped, self.aliases, self.opened)
        found = (self.scalars, self.unindexed, self.notes)
        return _unpickled, (folder, names, side_files, *content, *found)


def _unpickled(
    folder: Path,
    names: list[str],
    side_files: Mapping[str, tuple[int, int]],
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    dropped: Mapping[str, str],
    aliases: Mapping[str, str],
    opened: tuple[InputFile, ...],
    scalars: Mapping[str, Tensor],
    unindexed: Mapping[str, Tensor],
    notes: tuple[Note, ...],
) -> Checkpoint:
    """A checkpoint out of a pickle; its weight files have been checked when they were opened anew."""
    files = side_files_after_unpickling(folder, side_files) if side_files else {}
    paths = tuple(folder / name for name in names)
    found = (config, tensors, paths, dropped, aliases, opened, files)
    return Checkpoint(folder, *found, scalars, unindexed, notes)
