"""What ``make demo`` and ``make test`` install: kconv alone for the one, the extras for the other, once."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def _recipe(folder: Path, *words: str) -> list[str]:
    """The lines make would run for ``words`` in a clone in which nothing is installed."""
    left_out = ("MAKEFLAGS", "MAKELEVEL", "LLAMA_CPP_WHEELS", "TORCH_INDEX")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    command = ["make", "--no-print-directory", "--dry-run", *words, f"VENV={folder / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def _installing(lines: list[str]) -> list[str]:
    return [line.partition(" install ")[2] for line in lines if " pip install " in line]


def _requirements(*extras: str) -> list[str]:
    command = [sys.executable, str(ROOT / "tools" / "requirements_of.py"), *extras]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


def test_the_demo_installs_neither_extras_nor_test_tools(tmp_path: Path) -> None:
    lines = _installing(_recipe(tmp_path, "demo"))
    assert [line.split()[-2:] for line in lines] == [["--editable", "."]]


def test_with_wheels_of_llama_cpp_pip_is_asked_once(tmp_path: Path) -> None:
    (line,) = _installing(_recipe(tmp_path, "demo", "LLAMA_CPP_WHEELS=wheel-index"))
    assert "--find-links wheel-index/llama-cpp-python --only-binary llama-cpp-python --editable ." in line
    (line,) = _installing(_recipe(tmp_path, "demo", "LLAMA_CPP_WHEELS=https://example.org/w"))
    assert "--find-links https://example.org/w/llama-cpp-python/ " in line


def test_the_tests_bring_the_rest_and_build_the_kernels_once(tmp_path: Path) -> None:
    lines = _installing(_recipe(tmp_path, "test"))
    assert len(lines) == 2
    assert lines[0].endswith("--editable .")
    assert "requirements_of.py test" in lines[1]


def test_an_extra_that_names_others_is_written_out() -> None:
    words = _requirements("test")
    names = {Requirement(word).name for word in words}
    assert len(words) == len(set(words))
    for extra in ("onnx", "s3", "cluster", "docs"):
        assert names >= {Requirement(word).name for word in PROJECT["optional-dependencies"][extra]}
    assert "kconv" not in names
    assert _requirements("docs") == PROJECT["optional-dependencies"]["docs"]


def test_an_unknown_extra_is_an_error() -> None:
    with pytest.raises(subprocess.CalledProcessError):
        _requirements("nothing")
