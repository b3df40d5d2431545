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
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.errors import UsageError
from ...core.input_files import read_bytes, read_json
from ...core.model import Model, Note
from ...quant.formats import nearest
from ...vocab.byte_vocabulary import is_byte_tokenizer
from ...vocab.sentencepiece_model import MODEL_FILES
from ...vocab.sources import read_source
from ...vocab.tokenizer_json import byte_tokenizer_json, gpt2_tokenizer_json
from ..architectures import recipe_for


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

GBST_CONFIG = "config.gbswt5.json"
"""The config.json of a checkpoint with a GBST front end as it was; config.json itself says T5."""

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
    checkpoint: Checkpoint, model: Model, layout: Layout, graphs: Mapping[str, int]
) -> FilesBeside:
    """The configuration, tokenizer and licence files of a folder.

    ``graphs`` are the paths of the graphs, and in how many files the weights of each lie. What need not
    change is copied byte for byte. Raises CheckpointError and VocabError for files that cannot be read.
    """
    contents: dict[str, bytes] = {}
    for name in _COPIED:
        data = read_bytes(checkpoint.folder, name)
        if data is not None:
            contents[name] = data
    notes: list[Note] = []
    config = dict(checkpoint.config)
    changed = _without_code(config, notes) | _told(config, model)
    if recipe_for(config).name == "gbswt5":
        contents[GBST_CONFIG] = _json(config)
        changed |= {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
        notes.append(
            Note("gbst-config", f"config.json says T5, since the graphs run as one; see {GBST_CONFIG}")
        )
    if layout.name == "transformers.js":
        changed["transformers.js_config"] = {"use_external_data_format": _by_file_name(graphs)}
    original = read_bytes(checkpoint.folder, "config.json")
    contents["config.json"] = original if original and changed == config else _json(changed)
    if is_byte_tokenizer(checkpoint):
        contents |= _byte_tokenizer(checkpoint, notes)
    else:
        contents |= _other_tokenizer(checkpoint, notes)
    return FilesBeside(MappingProxyType(dict(sorted(contents.items()))), tuple(dict.fromkeys(notes)))


def _without_code(settings: Mapping[str, Any], notes: list[Note]) -> dict[str, Any]:
    """Without ``auto_map``: code of the checkpoint's own, which is not copied and not needed."""
    if "auto_map" in settings:
        notes.append(
            Note("custom-code", "auto_map is left out: the folder needs no code of the checkpoint's own")
        )
    return {key: value for key, value in settings.items() if key != "auto_map"}


def _told(config: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What transformers takes for granted in an encoder-decoder's configuration and others do not."""
    if model.arch != "t5":
        return {}
    granted = {
        "is_encoder_decoder": True,
        "num_decoder_layers": model.hparams["t5.decoder_block_count"],
        "decoder_start_token_id": model.hparams["t5.decoder_start_token_id"],
    }
    return {key: value for key, value in granted.items() if config.get(key) is None}


def _by_file_name(graphs: Mapping[str, int]) -> dict[str, int]:
    return {path.rpartition("/")[2]: files for path, files in graphs.items()}


def _byte_tokenizer(checkpoint: Checkpoint, notes: list[Note]) -> dict[str, bytes]:
    """A tokenizer.json, and a tokenizer_config.json that says all that Transformers.js wants to know."""
    source = read_source(checkpoint)
    settings = _without_code(read_json(checkpoint.folder, "tokenizer_config.json") or {}, notes)
    settings["tokenizer_class"] = "ByT5Tokenizer"
    settings.setdefault("clean_up_tokenization_spaces", False)
    for key, role in (("pad_token", "padding"), ("eos_token", "eos"), ("unk_token", "unknown")):
        settings.setdefault(key, source.tokens[source.special[role]])
    notes.append(
        Note("byte-tokenizer", "tokenizer.json is made for the vocabulary of bytes, equal to ByT5Tokenizer")
    )
    return {
        "tokenizer.json": byte_tokenizer_json(source).encode(),
        "tokenizer_config.json": _json(settings),
    }


def _other_tokenizer(checkpoint: Checkpoint, notes: list[Note]) -> dict[str, bytes]:
    """Of the files of other tokenizers those that are changed or made."""
    made = {}
    settings = read_json(checkpoint.folder, "tokenizer_config.json") or {}
    plain = _without_code(settings, notes)
    if plain != settings:
        made["tokenizer_config.json"] = _json(plain)
    if checkpoint.has("merges.txt") and not checkpoint.has("tokenizer.json"):
        made["tokenizer.json"] = gpt2_tokenizer_json(read_source(checkpoint)).encode()
        notes.append(Note("made-tokenizer", "tokenizer.json is made of vocab.json and merges.txt"))
    return made


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
