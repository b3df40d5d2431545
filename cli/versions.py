"""Versions of kconv and of what decides its output, read without importing any of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import cast

from ..core.system_processes import library_names

_PACKAGES = {
    "kconv": "kconv",
    "llama-cpp-python": "llama-cpp-python",
    "gguf": "gguf",
    "tokenizers": "tokenizers",
}


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Name -> version, ``not installed`` where a package is missing; of ``more`` packages, too."""
    packages = {**_PACKAGES, **{name: name for name in more}}
    installed = {name: _version(package) for name, package in packages.items()}
    return {"kconv": installed.pop("kconv"), "libggml": libggml_version(), **installed}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def libggml_version() -> str:
    """Version of the libggml within llama-cpp-python: of a file's name, or else the library is asked.

    Names say nothing on Windows, and in wheels of ``tools/build_llama_wheels.py``, which hold no second copy.
    """
    spec = find_spec("llama_cpp")  # looks, but does not import
    folders = [Path(each, "lib") for each in (spec.submodule_search_locations or ())] if spec else []
    for folder in folders:
        for file in sorted(folder.glob("libggml-base*")):
            match = re.search(r"\d+\.\d+\.\d+", file.name)
            if match:
                return match.group()
    asked = (_said_by(folder / name) for folder in folders for name in library_names("ggml-base"))
    return next((version for version in asked if version), "unknown")


def _said_by(library: Path) -> str | None:
    """What ``ggml_version()`` of ggml.h returns; None where no such library can be loaded."""
    import ctypes

    try:
        function = ctypes.CDLL(str(library)).ggml_version
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_char_p
    return cast(bytes, function()).decode()
