"""What stands in an ONNX folder besides graphs and weights, and under which names all of it stands.

A folder is loaded by others, so names are theirs: optimum's, or Transformers.js's, which looks for graphs
under ``onnx/``, with the type in their names and the weights of each in a file of its own beside it
(src/utils/model-loader.js and dtypes.js of @huggingface/transformers 4.3.1).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ...core.checkpoint import Checkpoint
from ...core.errors import UsageError
from ...core.input_files import read_bytes
from ...core.model import Model, Note
from ...quant.formats import nearest
from ...quant.parts import EMBEDDING
from ...vocab.context import read_context
from ...vocab.own_vocabulary import own_vocabulary
from ...vocab.sentencepiece_model import MODEL_FILES
from ...vocab.sources import read_source
from .side_files import CONFIG, Contents, as_json, configurations, tokenizer_files


@dataclass(frozen=True)
class Layout:
    """How a folder is divided.

    ``folder`` is where the graphs lie, ``suffixes`` are added to their names by type. ``data_name`` is the
    file of weights all graphs share; without one each has its own. ``merged``: one decoder does what the
    decoders with and without a cache do elsewhere.
    """

    name: str
    folder: str = ""
    suffixes: Mapping[str, str] = field(default_factory=dict)
    data_name: str | None = None
    merged: bool = False

    def graph_path(self, graph: str, type: str) -> str:
        """The path in the folder of a graph (``model.onnx``, ``encoder_model.onnx`` …) of ``type``."""
        stem, dot, ending = graph.rpartition(".")
        path = f"{stem}{self.suffixes.get(type, '')}{dot}{ending}"
        return f"{self.folder}/{path}" if self.folder else path

    def data_path(self, graph: str, type: str) -> str:
        """The path in the folder of the file of weights of a graph."""
        return self.data_name or f"{self.graph_path(graph, type)}_data"


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout("optimum", data_name="model.onnx_data"),
            Layout(
                "transformers.js",
                "onnx",
                MappingProxyType({"f16": "_fp16", "q8_0": "_quantized", "q4_0": "_q4"}),
                merged=True,
            ),
        )
    }
)

_COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    *MODEL_FILES,
    "chat_template.jinja",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "COPYING",
    "NOTICE",
)


@dataclass(frozen=True)
class FilesBeside:
    """``contents`` by file name, all of them in the folder itself."""

    contents: Mapping[str, bytes]
    notes: tuple[Note, ...]


def parse_layout(text: str) -> Layout:
    """The layout of that name, case ignored. Raises UsageError naming all."""
    layout = LAYOUTS.get(text.strip().lower())
    if layout is None:
        raise UsageError(f"there is no layout {text!r}", hint=nearest(text, list(LAYOUTS)))
    return layout


def files_beside(
    checkpoint: Checkpoint,
    model: Model,
    layout: Layout,
    graphs: Mapping[str, int],
    chat_template: str | None = None,
) -> FilesBeside:
    """The configuration, tokenizer and licence files of a folder.

    ``graphs`` are the paths of the graphs, and in how many files the weights of each lie; ``chat_template``
    is as of ``to_gguf``. What need not change is copied byte for byte. Raises CheckpointError and VocabError
    for files that cannot be read, UsageError for an unknown chat template.
    """
    contents: Contents = {}
    for name in _COPIED:
        data = read_bytes(checkpoint.folder, name)
        if data is not None:
            contents[name] = data
    notes: list[Note] = []
    rows = model.tensor(EMBEDDING).rows
    context = read_context(checkpoint, arch=model.arch, rows=rows, chat_template=chat_template)
    source = read_source(checkpoint)
    vocab, said = own_vocabulary(source, context)
    notes += said
    contents |= configurations(checkpoint, model, context, vocab, notes)
    if layout.name == "transformers.js":
        told = {"use_external_data_format": _by_file_name(graphs)}
        config = json.loads(contents[CONFIG] or b"")
        contents[CONFIG] = as_json({**config, "transformers.js_config": told})
    contents |= tokenizer_files(checkpoint, source, vocab, notes)
    kept = {name: data for name, data in sorted(contents.items()) if data is not None}
    return FilesBeside(MappingProxyType(kept), tuple(dict.fromkeys(notes)))


def _by_file_name(graphs: Mapping[str, int]) -> dict[str, int]:
    return {path.rpartition("/")[2]: files for path, files in graphs.items()}
