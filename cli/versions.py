"""Versions of kconv and of what decides its output, read without importing any of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

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
    """Version of the libggml within llama-cpp-python, from its file name."""
    spec = find_spec("llama_cpp")  # looks, but does not import
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in sorted((Path(folder) / "lib").glob("libggml-base*")):
            match = re.search(r"\d+\.\d+\.\d+", file.name)
            if match:
                return match.group()
    return "unknown"
