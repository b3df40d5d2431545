"""What extras of pyproject.toml ask for, as words for pip: ``python tools/requirements_of.py test docs``.

An extra that names others, as ``kconv[onnx,s3]``, asks for what these do. kconv itself is not a word of it:
it is installed already, and pip would build its kernels once more. Standard library only.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

_PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]


def requirements(extras: Iterable[str]) -> list[str]:
    """The requirements of ``extras``, each once, in pyproject.toml's order; KeyError for an unknown one."""
    found: dict[str, None] = {}
    for extra in extras:
        for words in _PROJECT["optional-dependencies"][extra]:
            others = re.fullmatch(r"kconv\[([\w,\s-]+)\]", words)
            within = requirements(re.split(r"\s*,\s*", others[1])) if others else [words]
            found |= dict.fromkeys(within)
    return list(found)


if __name__ == "__main__":
    print(*requirements(sys.argv[1:]))
