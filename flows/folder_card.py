"""The README.md of an ONNX folder: written when the folder is complete, for it says what the proof found."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..converters.manifest import manifest_json
from ..converters.targets import FOLDER_MANIFEST
from ..core.errors import KconvError
from ..core.files import atomic_file
from ..core.input_files import file_sha256
from .artifacts import README
from .results import OnnxConversion


def with_card(
    made: OnnxConversion, card: Callable[[Path], str] | None, announce: Callable[[str], None]
) -> OnnxConversion:
    """The folder with its card, which the manifest then names as it does the other files.

    A README.md that is there already stays. Why a card could not be made is announced: the folder is good
    without one.
    """
    if card is None or (made.path / README).exists():
        return made
    try:
        text = card(made.path)
    except KconvError as error:
        announce(f"no README.md was written: {error.message}")
        return made
    with atomic_file(made.path / README, force=False) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    size = (made.path / README).stat().st_size
    manifest = made.path / FOLDER_MANIFEST
    content = json.loads(manifest.read_text("utf-8"))
    entry = {"name": README, "bytes": size, "sha256": file_sha256(made.path / README)}
    content["output"]["files"].append(entry)
    content["output"]["bytes"] += size
    with atomic_file(manifest, force=True) as temporary:
        temporary.write_text(manifest_json(content), encoding="utf-8", errors="backslashreplace")
    return replace(made, files={**made.files, README: size})
