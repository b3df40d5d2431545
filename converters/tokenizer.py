"""The tokenizer of a checkpoint, read with the class transformers reads it with."""

from __future__ import annotations

from ..core.checkpoint import Checkpoint
from ..vocab.sources import Source, read_source
from .families import FAMILIES


def read_tokenizer(checkpoint: Checkpoint, rows: int | None = None) -> Source:
    """The checkpoint's own tokenizer; where no file names its class, that of the family its model_type names.

    With ``rows`` added tokens beyond so many are left out. Raises what ``vocab.sources.read_source`` raises.
    """
    kind = checkpoint.config.get("model_type")
    known = next((family.tokenizer_class for family in FAMILIES if family.name == kind), "")
    return read_source(checkpoint, known, rows)
