"""The README.md of an ONNX folder. It says what the proof found, so one that is proven gets it after that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..converters.manifest import manifest_json
from ..converters.targets import FOLDER_MANIFEST
from ..core.errors import KconvError
from ..core.files import atomic_file
from .artifacts import README
from .results import OnnxConversion


def with_card(
    made: OnnxConversion, card: Callable[[Path], str] | None, announce: Callable[[str], None]
) -> OnnxConversion:
    """The folder with its card, once it is proven. Why there is none is announced: it is good without."""
    if card is None:
        return made
    try:
        texts = card_and_manifest(made.path, card, announce)
        for name, text in texts.items():
            with atomic_file(made.path / name, force=name == FOLDER_MANIFEST) as temporary:
                temporary.write_bytes(text)
    except OSError as error:
        announce(f"no README.md was written: {error}")
        return made
    return replace(made, files={**made.files, README: len(texts[README])}) if texts else made


def card_and_manifest(
    folder: Path, card: Callable[[Path], str], announce: Callable[[str], None]
) -> dict[str, bytes]:
    """The card, and the manifest that names it as it does the other files, to be written in that order.

    Nothing where a README.md is there already, nor where none can be made, which is announced.
    """
    if (folder / README).exists():
        return {}
    try:
        text = card(folder).encode("utf-8", "backslashreplace")
    except KconvError as error:
        announce(f"no README.md was written: {error.message}")
        return {}
    content = json.loads((folder / FOLDER_MANIFEST).read_text("utf-8"))
    entry = {"name": README, "bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    content["output"]["files"].append(entry)
    content["output"]["bytes"] += len(text)
    return {README: text, FOLDER_MANIFEST: manifest_json(content).encode("utf-8", "backslashreplace")}
