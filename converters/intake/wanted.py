"""What a family asks for by name, and how a checkpoint's tensors are changed with a word on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.errors import CheckpointError
from ...core.input_files import quoted
from ...core.model import Note
from ...core.tensor import Tensor
from ..family import AnyFamily, Facts, Row, Sizes

_NUMBER = re.compile(r"(?<=\.)(?:\d+|\{[ie]\})(?=\.)")
_SHOWN = 4


def pattern(name: str) -> str:
    """A name with ``#`` for each of its numbers: ``model.layers.#.mlp.up_proj.weight``."""
    return _NUMBER.sub("#", name)


class Wanted:
    """The names of a family's rows.

    ``sources`` are patterns of what rows may take, ``always`` of what those take that apply to every model,
    ``dropped`` of what the family drops by itself. ``base`` is what the names of all layers begin with
    (``model.``), empty where encoder and decoder differ.
    """

    def __init__(self, family: AnyFamily, config: Mapping[str, Any]) -> None:
        self.family = family
        self.facts: Facts = family.read(config)
        self.sizes: Sizes = self.facts.sizes
        self.always = _patterns(row for row in family.rows if row.when is None)
        self.sources = _patterns(family.rows)
        self.dropped = frozenset(map(pattern, family.dropped))
        self.layered = [row for row in family.rows if any("{i}" in source for source in row.sources)]
        starts = [source.partition("{i}")[0] for row in self.layered for source in row.sources]
        self.base = _common_start(starts)
        self.stacks = frozenset(starts)

    def knows(self, name: str) -> bool:
        """Whether a row may take a tensor of that name, or the family drops it."""
        kind = pattern(name)
        return kind in self.sources or kind in self.dropped

    def in_a_layer(self, name: str) -> bool:
        """Whether a name is that of something inside one of the model's layers."""
        return any(name.startswith(stack) for stack in self.stacks)

    def taken(self, checkpoint: Checkpoint) -> frozenset[str]:
        """Patterns of what the rows that apply take; reads weights where a head must be compared."""
        return _patterns(self.active(checkpoint))

    def active(self, checkpoint: Checkpoint) -> list[Row]:
        """The rows that apply; reads weights where a head must be compared."""
        flags = self.family.flags(self.facts, checkpoint)
        return [row for row in self.family.rows if row.when is None or row.when in flags]

    @property
    def writes_no_text(self) -> bool:
        """Whether the model has no output matrix, since it is an encoder alone."""
        return self.family.encoder_only

    @cached_property
    def embeddings(self) -> tuple[str, ...]:
        """The names the embedding may have, the usual one first."""
        return self._of("token_embd.weight")

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """The names of an output matrix of its own."""
        named = [name for name in self._of("output.weight") if name not in self.embeddings]
        return tuple(dict.fromkeys([*named, "lm_head.weight"]))

    def _of(self, target: str) -> tuple[str, ...]:
        rows = [row for row in self.family.rows if row.target == target]
        return tuple(dict.fromkeys(source for row in rows for source in row.sources))


def _patterns(rows: Iterable[Row]) -> frozenset[str]:
    return frozenset(pattern(source) for row in rows for source in row.sources)


def _common_start(starts: Sequence[str]) -> str:
    """What stands before the word for layers in all of them: ``model.`` of ``model.layers.``."""
    parts = [start.rstrip(".").split(".")[:-1] for start in starts]
    common = []
    for column in zip(*parts, strict=False):
        if len(set(column)) > 1:
            break
        common.append(f"{column[0]}.")
    return "".join(common)


def noted(checkpoint: Checkpoint, name: str, message: str, *, warning: bool = False) -> Checkpoint:
    """The checkpoint with one more note."""
    return replace(checkpoint, notes=(*checkpoint.notes, Note(name, message, warning)))


def without(checkpoint: Checkpoint, names: Iterable[str]) -> Checkpoint:
    """The checkpoint without those tensors and numbers."""
    gone = frozenset(names)
    return replace(
        checkpoint,
        tensors={name: tensor for name, tensor in checkpoint.tensors.items() if name not in gone},
        scalars={name: tensor for name, tensor in checkpoint.scalars.items() if name not in gone},
        dropped={name: kind for name, kind in checkpoint.dropped.items() if name not in gone},
        unindexed={name: tensor for name, tensor in checkpoint.unindexed.items() if name not in gone},
        aliases={
            name: other
            for name, other in checkpoint.aliases.items()
            if name not in gone and other not in gone
        },
    )


def renamed(checkpoint: Checkpoint, new_name: Callable[[str], str]) -> Checkpoint:
    """The checkpoint with other names. Raises CheckpointError where two tensors would get the same one."""
    origin: dict[str, str] = {}
    for name in (*checkpoint.tensors, *checkpoint.unindexed):
        new = new_name(name)
        if (first := origin.setdefault(new, name)) != name:
            raise CheckpointError(
                f"{checkpoint.folder}: {quoted(first)} and {quoted(name)} would both be {quoted(new)}",
                hint="two models seem to lie in one file; save the one you want alone",
            )

    def moved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {new_name(name): replace(tensor, name=new_name(name)) for name, tensor in tensors.items()}

    return replace(
        checkpoint,
        tensors=moved(checkpoint.tensors),
        scalars=moved(checkpoint.scalars),
        unindexed=moved(checkpoint.unindexed),
        dropped={new_name(name): kind for name, kind in checkpoint.dropped.items()},
        aliases={new_name(name): new_name(other) for name, other in checkpoint.aliases.items()},
    )


def listed(names: Sequence[str]) -> str:
    """Names out of a file in at most some lines: those of all layers are one, with ``#`` for the number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(pattern(name), []).append(name)
    shown = [
        f"{kind} ({len(group)} of them)" if len(group) > 1 else quoted(group[0])[1:-1]
        for kind, group in groups.items()
    ]
    more = f" and {len(shown) - _SHOWN} more kinds" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
