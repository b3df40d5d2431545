"""What the vocabulary stage may know of a checkpoint besides its tokenizer.

Names matter where files do not say enough: 42dot's PLM and SFT share configuration and vocabulary, so only a
name decides whether the prompt format of the SFT model applies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import CheckpointError
from ..core.input_files import InputFile, read_json
from ..core.reading import hub_origin

MAX_CARD = 1 << 20
_HEADING = re.compile(r"^#[ \t]+(\S.{0,199}?)[ \t#]*$", re.MULTILINE)
_FRONT_MATTER = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class AdapterContext:
    """The files adapters decide by. Missing files are empty mappings.

    ``rows`` is the number of embedding rows. ``names`` says by where it was found (``folder``, ``Hub cache``,
    ``config.json _name_or_path``, ``README.md``) what the model is called. ``chat_template`` is what the user
    asked for by name or file, None if nothing. ``words_as_text``: ordinary words among the special tokens are
    to be written as text.
    """

    rows: int
    config: Mapping[str, Any] = field(default_factory=dict)
    generation_config: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config: Mapping[str, Any] = field(default_factory=dict)
    special_tokens_map: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    words_as_text: bool = False


def read_context(
    checkpoint: Checkpoint, *, rows: int, chat_template: str | None = None, words_as_text: bool = False
) -> AdapterContext:
    """Gather the context from a checkpoint's folder.

    Raises CheckpointError where one of the JSON files is malformed.
    """
    folder = checkpoint.folder
    return AdapterContext(
        rows=rows,
        config=checkpoint.config,
        generation_config=read_json(folder, "generation_config.json") or {},
        tokenizer_config=read_json(folder, "tokenizer_config.json") or {},
        special_tokens_map=read_json(folder, "special_tokens_map.json") or {},
        names=model_names(checkpoint),
        chat_template=chat_template,
        words_as_text=words_as_text,
    )


def model_names(checkpoint: Checkpoint) -> dict[str, str]:
    """What the checkpoint is called, by where that was found, the surest place first."""
    names: dict[str, str] = {}
    repository, _ = hub_origin(checkpoint.folder)
    if repository is not None:
        names["Hub cache"] = repository
    else:
        names["folder"] = checkpoint.folder.resolve().name
    name = checkpoint.config.get("_name_or_path")
    if isinstance(name, str) and name.strip():
        names["config.json _name_or_path"] = name.strip()[:500]
    heading = _HEADING.search(_FRONT_MATTER.sub("", read_card(checkpoint.folder), count=1))
    if heading is not None:
        names["README.md"] = heading.group(1)
    return names


def read_card(folder: Path) -> str:
    """The beginning of README.md, at most MAX_CARD bytes; empty if there is none."""
    return read_beginning(folder / "README.md", MAX_CARD)


def read_beginning(path: Path, limit: int) -> str:
    """The first ``limit`` bytes of a text; empty if there is no such file.

    Raises EnvironmentProblem where the machine refuses: names decide over chat templates, and a file that
    cannot be read now is not one that says nothing.
    """
    try:
        file = InputFile(path)
        data = file.read(0, min(file.size, limit))
    except CheckpointError:
        return ""
    return data.decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n")


def front_matter(card: str) -> str:
    """The YAML between the two lines of dashes a card begins with; empty if it has none."""
    match = _FRONT_MATTER.match(card)
    return "" if match is None else match.group(1)
