"""Shared libraries that tests compile and put before, or in place of, real ones."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest


def shared_library(library: Path, sources: Sequence[Path], *options: str) -> Path:
    """Compile C into ``library``; a test that needs it is skipped where there is no compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    files = [*map(str, sources), "-o", str(library)]
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", *files, *options], check=True)
    return library
