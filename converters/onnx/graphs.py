"""Which graphs a checkpoint becomes: those its family describes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ...core.checkpoint import Checkpoint
from ...quant.formats import Format
from ..family import AnyFamily
from .flavours import STANDARD, Flavour
from .graph import Graph
from .request import GraphRequest


def graphs_of(
    family: AnyFamily,
    checkpoint: Checkpoint,
    formats: Mapping[str, Format],
    accuracy_level: int = 0,
    *,
    merged: bool = False,
    flavour: Flavour = STANDARD,
    halves: bool = False,
) -> dict[str, Graph]:
    """The graphs by their files' names, of a checkpoint ``build`` took for ONNX; see ``GraphRequest``."""
    assert family.graphs is not None
    facts = family.read(checkpoint.config)
    flags = family.flags(facts, checkpoint)
    checkpoint = replace(checkpoint, tensors=family.upright(checkpoint.tensors))
    request = GraphRequest(checkpoint, facts, flags, formats, accuracy_level, merged, flavour, halves)
    return family.graphs(request)
