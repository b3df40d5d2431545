"""How a sentence encoder makes one vector of a text, as its folder says: sentence-transformers' modules.json.

Read are modules.json, a list of modules in the order they run, and config.json in the Pooling module's folder
(sentence-transformers, models/Pooling.py). Without modules.json nothing is pooled: whoever uses the model
takes what he wants of its hidden states.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..core.checkpoint import Checkpoint
from ..core.errors import CheckpointError
from ..core.input_files import quoted, read_json, read_text
from ..core.model import Note

Way = Literal["mean", "cls", "last"]
MODULES = "modules.json"
_SETTINGS = ("sentence_bert_config.json", "config_sentence_transformers.json")
_WAYS: Mapping[str, Way] = {"mean_tokens": "mean", "cls_token": "cls", "lasttoken": "last"}
_SAID: Mapping[str, Way] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
_NUMBERS: Mapping[Way, int] = {"mean": 1, "cls": 2, "last": 3}  # llama.h, enum llama_pooling_type
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}")
_MORE = frozenset({"Transformer", "Pooling", "Normalize"})


@dataclass(frozen=True)
class Pooling:
    """``way`` is None where hidden states are all there is; ``normalized``: the vector's length becomes 1.

    ``notes`` are on modules that are left out.
    """

    way: Way | None = None
    normalized: bool = False
    notes: tuple[Note, ...] = ()

    @property
    def keys(self) -> dict[str, int]:
        """The GGUF keys, without the architecture's prefix."""
        return {} if self.way is None else {"pooling_type": _NUMBERS[self.way]}


def pooling_of(checkpoint: Checkpoint) -> Pooling:
    """What the folder says. Raises CheckpointError for malformed files."""
    modules = _modules(checkpoint)
    kinds = [kind for kind, _ in modules]
    folder = next((folder for kind, folder in modules if kind == "Pooling"), None)
    if folder is None:
        return Pooling()
    others = [kind for kind in kinds if kind not in _MORE]
    if others:
        message = (
            f"{MODULES} names a module {quoted(others[0])[1:-1]}, which is not converted: the file gives "
            "hidden states and no embedding of a text; pool them and apply that module in your own program"
        )
        return Pooling(notes=(Note("pooling", message, warning=True),))
    way = _way(checkpoint, folder)
    if isinstance(way, Note):
        return Pooling(notes=(way,))
    return Pooling(way, "Normalize" in kinds)


def sentence_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The files by which sentence-transformers loads a folder, as far as they are there."""
    if not checkpoint.has(MODULES):
        return ()
    folders = (folder for _, folder in _modules(checkpoint) if _FOLDER.fullmatch(folder))
    names = (MODULES, *_SETTINGS, *(f"{folder}/config.json" for folder in folders))
    return tuple(name for name in names if checkpoint.has(name))


def _modules(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """Kind and folder of each module."""
    text = read_text(checkpoint.folder, MODULES)
    if text is None:
        return []
    where = f"{checkpoint.folder / MODULES}"
    try:
        listed = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{where} is not valid JSON: {error}", hint="download it again") from error
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise CheckpointError(f"{where} is no list of objects", hint="download it again")
    return [(str(each.get("type")).rpartition(".")[2], str(each.get("path") or "")) for each in listed]


def _way(checkpoint: Checkpoint, folder: str) -> Way | Note:
    if not _FOLDER.fullmatch(folder):
        raise CheckpointError(
            f"{checkpoint.folder / MODULES}: the path of Pooling is {quoted(folder)}, expected a folder's "
            "name"
        )
    settings: Mapping[str, Any] | None = read_json(checkpoint.folder / folder, "config.json")
    if settings is None:
        raise CheckpointError(
            f"{checkpoint.folder} has no {folder}/config.json, which {MODULES} names",
            hint="download that folder, too",
        )
    said = settings.get("pooling_mode")
    modes = [said] if isinstance(said, str) else []
    modes += [key.removeprefix("pooling_mode_") for key, value in settings.items() if value is True]
    modes = [mode for mode in modes if mode != "include_prompt"]
    if len(modes) == 1 and (way := _WAYS.get(modes[0], _SAID.get(modes[0]))) is not None:
        return way
    message = (
        f"{folder}/config.json asks for the pooling {quoted(', '.join(modes))[1:-1] or 'none'}; mean, cls "
        "and lasttoken are supported, so the file gives hidden states and no embedding of a text"
    )
    return Note("pooling", message, warning=True)
