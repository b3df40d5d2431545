"""Conversion, proof and generation where llama.cpp's own buffers end in SIGILL, as gcc 12's do with AMX."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from standin_material import dying_llama

from kconv.converters.samples import write_sample

__all__ = ["dying_llama"]
KCONV = str(Path(sys.executable).parent / "kconv")


def kconv(*words: str | Path, library: Path | None, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    environment |= {"XDG_CACHE_HOME": str(folder / "cache")}
    environment |= {"LLAMA_CPP_LIB_PATH": str(library)} if library is not None else {}
    done = subprocess.run(
        [KCONV, *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dying")


@pytest.fixture(scope="module")
def model(folder: Path, dying_llama: Path) -> Path:
    """The small trained 42dot as q8_0, made and proven with the dying library."""
    write_sample("42dot", folder / "checkpoint")
    words = ["to-gguf", folder / "checkpoint", "-q", "q8_0", "-o", folder, "--json"]
    output = json.loads(kconv(*words, library=dying_llama, folder=folder).stdout)
    assert output["verdict"] == "passed"
    assert output["proofs"][0]["logits"]["figures"]["kl_mean"] < 0.01
    return Path(output["outputs"][0]["path"])


def test_generation_goes_on_without_them_and_says_so_once(
    model: Path, folder: Path, dying_llama: Path
) -> None:
    words = ["run", model, "-p", "옛날 어느 마을에", "--no-chat", "-n", "20", "--temp", "0", "--threads", "1"]
    done = kconv(*words, library=dying_llama, folder=folder)
    assert len(done.stdout.strip()) > 10
    assert done.stderr.count("kconv doctor") == 1
    assert "own buffers" in done.stderr
