"""The rooms of the house, lowest first, of pyproject.toml's list of packages; as a program it prints them."""

from __future__ import annotations

import tomllib
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))
ROOMS: list[str] = [
    name.removeprefix("kconv.") for name in _PROJECT["tool"]["setuptools"]["packages"] if name.count(".") == 1
]

if __name__ == "__main__":
    print(*ROOMS)
