"""Embedding and output matrix: one matrix under the other's name, or lost."""

from __future__ import annotations

import re
from dataclasses import replace

from ...core.checkpoint import Checkpoint
from ...core.errors import CheckpointError
from ...core.input_files import quoted
from .wanted import Wanted, noted, renamed, without

_TIED = "tie_word_embeddings"
# What other programs call the output matrix, whatever stands in front.
_HEAD = re.compile(r"(.*\.)?(lm_head|embed_out|output|output_layer)(\.(linear|out_proj|decoder))?\.weight")


def with_head_named(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """With the output matrix under the family's name, where another name's is the only one of its shape."""
    held, sizes = checkpoint.tensors, wanted.sizes
    if wanted.writes_no_text or not wanted.embeddings or any(name in held for name in wanted.heads):
        return checkpoint
    shape = tuple(sizes.get(word) for word in ("rows", "hidden"))
    heads = [
        name
        for name, tensor in held.items()
        if _HEAD.fullmatch(name) and tensor.shape == shape and not wanted.knows(name)
    ]
    if len(heads) != 1:
        return checkpoint
    name = wanted.heads[0]
    message = f"the output matrix {quoted(heads[0])[1:-1]} is read as {name}"
    return noted(renamed(checkpoint, lambda each: name if each == heads[0] else each), "head-name", message)


def with_embedding(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """With the embedding under its own name, where a tied model was saved with the head's alone."""
    if not wanted.embeddings or any(name in checkpoint.tensors for name in wanted.embeddings):
        return checkpoint
    head = next((name for name in wanted.heads if name in checkpoint.tensors), None)
    if head is None:
        return checkpoint
    name = wanted.embeddings[0]
    if not _tied(checkpoint, wanted):
        raise CheckpointError(
            f"{checkpoint.folder}: {name} is missing, and {head} is there, but config.json says "
            f"{_said(checkpoint)}",
            hint=f"save the model with its embedding; if the two are one matrix, set {_TIED} to true in "
            "config.json",
        )
    embedding = replace(checkpoint.tensors[head], name=name)
    tensors = {name: embedding, **without(checkpoint, [head]).tensors}
    message = f"{head} is read as {name}, too: config.json ties the two, and the file keeps one name"
    return noted(replace(without(checkpoint, [head]), tensors=tensors), "tied-embedding", message)


def refuse_lost_head(checkpoint: Checkpoint, wanted: Wanted) -> Checkpoint:
    """Raise CheckpointError where the model should have an output matrix of its own and has none."""
    embedded = any(name in checkpoint.tensors for name in wanted.embeddings)
    if not embedded or any(name in checkpoint.tensors for name in wanted.heads):
        return checkpoint
    rows = [row for row in wanted.active(checkpoint) if row.target == "output.weight"]
    lost = [name for row in rows for name in row.sources if name not in checkpoint.tensors]
    if lost:
        raise CheckpointError(
            f"{checkpoint.folder}: {lost[0]} is missing, and config.json says {_said(checkpoint)}: the head "
            "is lost",
            hint=f"save the model with its head; if the head is the embedding, set {_TIED} to true in "
            "config.json (an embedding model made of a chat model has none and writes no text)",
        )
    return checkpoint


def _tied(checkpoint: Checkpoint, wanted: Wanted) -> bool:
    said = checkpoint.config.get(_TIED)
    without_head = all(row.target != "output.weight" for row in wanted.family.rows)
    default = bool(getattr(wanted.facts, "tied", False)) or without_head
    return said if isinstance(said, bool) else default


def _said(checkpoint: Checkpoint) -> str:
    said = checkpoint.config.get(_TIED)
    return f"{_TIED} {str(said).lower()}" if isinstance(said, bool) else f"nothing of {_TIED}"
