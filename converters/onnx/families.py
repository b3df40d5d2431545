"""Which graphs a checkpoint becomes, by its family."""

from __future__ import annotations

from collections.abc import Mapping

from ...core.checkpoint import Checkpoint
from ...core.model import Model
from ...quant.formats import Format
from ..architectures import gptj, llama
from ..recipe import Recipe
from ..settings import Settings
from .gptj import describe_gptj
from .graph import Graph
from .llama import describe_llama
from .t5 import t5_graphs

# By the recipe's name; all others are T5.
_CAUSAL = {"llama": (describe_llama, llama.activation), "gptj": (describe_gptj, gptj.activation)}


def graphs_of(
    recipe: Recipe,
    checkpoint: Checkpoint,
    model: Model,
    formats: Mapping[str, Format],
    accuracy_level: int = 0,
    *,
    merged: bool = False,
) -> dict[str, Graph]:
    """The graphs by their files' names; ``merged`` as of ``t5_graphs``. Raises what the families raise."""
    if recipe.name not in _CAUSAL:
        return t5_graphs(checkpoint, formats, accuracy_level, merged=merged)
    graph = Graph("model", checkpoint.tensors, formats, accuracy_level)
    describe, activation = _CAUSAL[recipe.name]
    describe(graph, model, activation(Settings(checkpoint.config, "config.json")))
    return {"model.onnx": graph}
