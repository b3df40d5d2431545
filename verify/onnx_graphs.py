"""The graphs of a folder of kconv's, each beside the one a conversion would make of the checkpoint today."""

from __future__ import annotations

from ..converters.family import AnyFamily
from ..converters.onnx.flavours import FLAVOURS, STANDARD
from ..converters.onnx.graph import PRODUCER, Graph
from ..converters.onnx.graphs import graphs_of
from ..core.checkpoint import Checkpoint
from ..runtimes.onnx_folder import OnnxFolder
from ..runtimes.onnx_model_file import ModelFile


def is_own(folder: OnnxFolder) -> bool:
    """Whether kconv has made all of its graphs."""
    return all(file.producer == PRODUCER for file in folder.models)


def with_todays(
    folder: OnnxFolder, checkpoint: Checkpoint, family: AnyFamily
) -> list[tuple[ModelFile, Graph]]:
    """Each graph with that of today in the folder's flavour, its weights in F32; none of others' folders."""
    if not is_own(folder):
        return []
    merged = folder.encoder is not None and folder.decoder == folder.cached
    flavour = FLAVOURS.get(folder.flavour, STANDARD)
    graphs = graphs_of(family, checkpoint, {}, merged=merged, flavour=flavour)
    return list(zip(folder.models, graphs.values(), strict=True))
