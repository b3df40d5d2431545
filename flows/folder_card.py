"""The README.md of an ONNX folder. It says what the proof found, so one that is proven gets it after that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..converters.manifest import manifest_json
from ..converters.targets import FOLDER_MANIFEST
from ..core.errors import KconvError
from ..core.files import atomic_file
from .artifacts import README
from .results import OnnxConversion

Card = Callable[[Path], str] | bool
"""What makes the card of a folder: True is ``folder_card``, False stands for none."""


def maker_of(card: Card) -> Callable[[Path], str] | None:
    """What makes the card, if one is to be made."""
    return folder_card if card is True else card or None


def folder_card(folder: Path) -> str:
    """The README.md of a folder, in English and Korean, as ``kconv card`` writes it."""
    from ..report.model_card import model_card
    from .release import read_release

    return model_card(read_release([folder]))


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
    return {README: text, FOLDER_MANIFEST: _naming(content, text)}


def record_card(path: Path) -> None:
    """Have the manifest of an ONNX folder name the README.md just written into it.

    Raises OSError where the manifest cannot be written.
    """
    manifest = path.with_name(FOLDER_MANIFEST)
    if path.name != README or not manifest.is_file():
        return
    try:
        content = json.loads(manifest.read_text("utf-8"))
        made = _naming(content, path.read_bytes())
    except (ValueError, KeyError, TypeError):  # not as kconv writes it: verify says so
        return
    with atomic_file(manifest, force=True) as temporary:
        temporary.write_bytes(made)


def _naming(content: dict[str, Any], card: bytes) -> bytes:
    """A folder's manifest with the card among its files, once."""
    output = content["output"]
    entry = {"name": README, "bytes": len(card), "sha256": hashlib.sha256(card).hexdigest()}
    before = [each for each in output["files"] if each["name"] == README]
    output["files"] = [*(each for each in output["files"] if each["name"] != README), entry]
    output["bytes"] += len(card) - sum(each["bytes"] for each in before)
    return manifest_json(content).encode("utf-8", "backslashreplace")
