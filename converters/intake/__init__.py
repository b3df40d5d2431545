"""Checkpoints as they lie on disks, made what the mapping expects: one rule after the other, lazily.

Trainers, mergers and quantizers leave odd names, copies and leftovers in a folder. Each rule takes a
checkpoint and gives the one that is meant, with a note of what it did, or refuses what is ambiguous and says
the way out. No rule knows a family; they go by the names its rows ask for. All that reads a checkpoint
(conversion, proof, plan, imatrix, ONNX, inspect) reads what comes out here.
"""

from __future__ import annotations

from pathlib import Path

from ...core.checkpoint import Checkpoint
from ...core.elsewhere import Elsewhere
from ...core.reading import open_checkpoint
from ..families import family_for, has_family
from ..family import AnyFamily
from .classes import with_known_class
from .counts import refuse_empty, refuse_wrong_layers, refuse_wrong_vocabulary
from .float8 import dequantized
from .heads import refuse_lost_head, with_embedding, with_head_named
from .leftovers import without_leftovers, without_unindexed, without_zero_biases
from .names import as_named, refuse_adapters, unwrapped
from .norms import with_new_norm_names
from .other_parts import without_other_parts
from .wanted import Wanted

_ANYWHERE = (refuse_adapters, unwrapped, dequantized, with_known_class)
_FOR_A_FAMILY = (
    as_named,
    with_new_norm_names,
    without_unindexed,
    refuse_empty,
    with_head_named,
    with_embedding,
    without_leftovers,
    refuse_wrong_layers,
    without_zero_biases,
    without_other_parts,
    refuse_wrong_vocabulary,
    refuse_lost_head,
)


def open_model(source: str | Path | Elsewhere) -> tuple[Checkpoint, AnyFamily]:
    """Open a checkpoint folder as it is meant, and its family. Raises CheckpointError, UnsupportedModel."""
    checkpoint = prepared(open_checkpoint(source))
    return checkpoint, family_for(checkpoint.config)


def prepared(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as it is meant. Raises CheckpointError, UnsupportedModel for what is ambiguous.

    Without a family for it only those rules apply that need none.
    """
    for rule in _ANYWHERE:
        checkpoint = rule(checkpoint)
    if has_family(checkpoint.config):
        wanted = Wanted(family_for(checkpoint.config), checkpoint.config)
        for each in _FOR_A_FAMILY:
            checkpoint = each(checkpoint, wanted)
    return checkpoint
