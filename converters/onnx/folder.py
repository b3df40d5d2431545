"""What an ONNX folder contains besides graphs and weights, and the names of all its files.

A folder is loaded by others, so names are theirs: optimum's, or Transformers.js's, which looks for graphs
under ``onnx/``, with the type in their names and the weights of each in a file of its own beside it
(src/utils/model-loader.js and dtypes.js of @huggingface/transformers 4.3.1).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.errors import UsageError
from ...core.input_files import quoted, read_bytes, stays_with
from ...core.model import Model, Note
from ...quant.formats import nearest
from ...quant.parts import EMBEDDING
from ...vocab.context import read_context
from ...vocab.extra_tokens import EXTRA_TOKENS
from ...vocab.own_vocabulary import own_vocabulary
from ...vocab.sentencepiece_model import MODEL_FILES
from ...vocab.tokenizer import Source
from ..pooling import sentence_files
from .flavours import CONTRIB, STANDARD, Flavour
from .side_files import CONFIG, TEMPLATE, TOKENIZER, Contents, as_json, configurations, tokenizer_files
from .trimmed import trimmed_files


@dataclass(frozen=True)
class Layout:
    """How a folder is divided.

    ``folder`` is where the graphs lie, ``suffixes`` are added to their names by ``OnnxFormats.name``.
    ``data_name`` is the file of weights all graphs share; without one each has its own. ``merged``: one
    decoder does what the decoders with and without a cache do elsewhere. ``flavour`` is whose operators
    graphs have unless another is asked for: browsers compute those of contrib on the GPU.
    """

    name: str
    folder: str = ""
    suffixes: Mapping[str, str] = field(default_factory=dict)
    data_name: str | None = None
    merged: bool = False
    flavour: Flavour = STANDARD

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
                MappingProxyType(
                    {
                        **{"f16": "_fp16", "q8_0": "_quantized", "q4_0": "_q4"},
                        **{"f16-f16": "_fp16", "q8_0-f16": "_quantized", "q4_0-f16": "_q4f16"},
                    }
                ),
                merged=True,
                flavour=CONTRIB,
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
    "vocab.txt",
    *MODEL_FILES,
    TEMPLATE,
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "LICENCE",
    "COPYING",
    "NOTICE",
)


@dataclass(frozen=True)
class SideFiles:
    """``contents`` by path in the folder."""

    contents: Mapping[str, bytes]
    notes: tuple[Note, ...]


def parse_layout(text: str) -> Layout:
    """The layout of that name, case ignored. Raises UsageError naming all."""
    layout = LAYOUTS.get(text.strip().lower())
    if layout is None:
        raise UsageError(f"unknown layout {text!r}", hint=nearest(text, list(LAYOUTS)))
    return layout


def collect_side_files(
    checkpoint: Checkpoint,
    source: Source,
    model: Model,
    layout: Layout,
    graphs: Mapping[str, int],
    chat_template: str | None = None,
    *,
    drop_extra_tokens: bool = False,
    halves: str | None = None,
) -> SideFiles:
    """The configuration, tokenizer and licence files of a folder.

    ``source`` is the checkpoint's tokenizer, ``graphs`` are the paths of the graphs, and in how many files
    the weights of each lie; ``chat_template`` and ``drop_extra_tokens`` are as of ``to_gguf``. ``halves`` is
    Transformers.js's name of a type whose cache is FLOAT16, which older ones have to be told. What need not
    change is copied byte for byte; links out of the checkpoint (``stays_with``) are left out, and where a
    chat template may come from one, it too. Raises CheckpointError and VocabError for files that cannot be
    read, UsageError for an unknown chat template.
    """
    contents: Contents = {}
    notes: list[Note] = []
    names = (*_COPIED, *sentence_files(checkpoint))
    foreign = _foreign(checkpoint, names, notes)
    for name in names:
        place = checkpoint.folder / name
        data = None if name in foreign else read_bytes(place.parent, place.name)
        if data is not None:
            contents[name] = data
    if not foreign.isdisjoint((TEMPLATE, TOKENIZER)):
        chat_template = chat_template or "none"
    rows = model.tensor(EMBEDDING).rows
    context = read_context(checkpoint, rows=rows, chat_template=chat_template)
    vocab, vocab_notes = own_vocabulary(source, context)
    notes += vocab_notes
    contents |= configurations(checkpoint, model, context, vocab, notes)
    if layout.name == "transformers.js":
        settings: dict[str, Any] = {"use_external_data_format": _by_file_name(graphs)}
        if halves is not None:
            settings["kv_cache_dtype"] = {halves: "float16"}
        config = json.loads(contents[CONFIG] or b"")
        contents[CONFIG] = as_json({**config, "transformers.js_config": settings})
    trimmed = trimmed_files(checkpoint, rows) if drop_extra_tokens else {}
    notes += [note for note in source.notes if note.name == EXTRA_TOKENS]
    contents |= trimmed
    contents |= tokenizer_files(checkpoint, source, vocab, notes, trimmed)
    kept = {name: data for name, data in sorted(contents.items()) if data is not None and name not in foreign}
    return SideFiles(MappingProxyType(kept), tuple(dict.fromkeys(notes)))


def _foreign(checkpoint: Checkpoint, names: Sequence[str], notes: list[Note]) -> set[str]:
    """Those ``names`` that are links to files of this machine's, not of the checkpoint's; a note of each."""
    own = (checkpoint.folder / CONFIG, *checkpoint.weight_files)
    links = [name for name in names if not stays_with(checkpoint.folder / name, *own)]
    for name in links:
        where = quoted(os.path.realpath(checkpoint.folder / name))
        message = (
            f"{name} is left out: it is a link to {where}, which is not a file of this checkpoint; if "
            "you trust its origin, replace the link by a copy"
        )
        notes.append(Note("foreign-link", message, warning=True))
    return set(links)


def _by_file_name(graphs: Mapping[str, int]) -> dict[str, int]:
    return {path.rpartition("/")[2]: files for path, files in graphs.items()}
