"""Whether llama.cpp's own buffers work: what is found of the real one and of others, and what is kept."""

from __future__ import annotations

import json
import math
import os
import resource
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from standin_material import ABORTS, COMPUTES_RUBBISH, FAULTS, IS_KILLED, dying_llama, standin_library

from kconv.runtimes import llama_test_child, self_test

__all__ = ["dying_llama"]
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    return tmp_path / "cache" / "kconv"


def test_the_llama_cpp_here_works_and_the_answer_is_kept(cache: Path) -> None:
    result = self_test.examine()
    if result.state in ("dies", "differs"):
        pytest.skip(f"llama.cpp {result.description}: the tests of the stand-in say what follows")
    assert result == self_test.SelfTest("works")
    (kept,) = cache.iterdir()
    assert self_test.extra_buffers()
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps({**content, "state": "dies"}))
    assert not self_test.extra_buffers()  # the file was asked, not the library


def test_a_library_that_dies_is_not_used_and_that_is_kept(
    cache: Path, dying_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    self_test.extra_buffers()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(dying_llama))
    assert not self_test.extra_buffers()
    assert len(list(cache.iterdir())) == 2  # one for each library
    result = self_test.examine()
    assert (result.state, result.format) == ("dies", "Q8_0")
    assert result.description == "crashes (signal 4, SIGILL) on Q8_0 weights in its own buffers"


@pytest.mark.parametrize(
    ("how", "state", "words"),
    [
        (FAULTS, "dies", "SIGSEGV"),
        (ABORTS, "dies", "GGML_ASSERT(tiles)"),
        (COMPUTES_RUBBISH, "differs", "other logits"),
    ],
    ids=["faults", "aborts", "computes rubbish"],
)
def test_other_ways_to_fail(
    how: str, state: str, words: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(standin_library(tmp_path / "lib", how)))
    result = self_test.examine()
    assert result.state == state
    assert words in result.description
    assert not self_test.extra_buffers()
    assert len(list(cache.iterdir())) == 1


def test_what_dies_without_those_buffers_says_nothing_of_them(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(standin_library(tmp_path / "lib", when="1")))
    assert self_test.examine().state == "broken"
    assert not self_test.extra_buffers()
    assert not cache.exists()


def test_a_library_that_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libllama.so").write_bytes(b"\x7fELF and no more")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    result = self_test.examine()
    assert result.state == "broken"
    assert result.description.startswith("cannot be loaded: ")


def test_a_test_that_is_killed_is_no_answer(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(standin_library(tmp_path / "lib", IS_KILLED)))
    result = self_test.examine()
    assert result.state == "unknown"
    assert "signal 9" in result.description
    assert not self_test.extra_buffers()  # the safe choice, until it is known
    assert not cache.exists()


def test_one_kill_is_got_over(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = f'if (!access("{tmp_path}/first", 0)) {{ unlink("{tmp_path}/first"); {IS_KILLED} }}'
    library = standin_library(tmp_path / "lib", once)
    (tmp_path / "first").touch()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(library))
    assert self_test.examine().state == "works"


def test_nor_is_a_crash_that_does_not_come_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = f'if (!access("{tmp_path}/first", 0)) {{ unlink("{tmp_path}/first"); {FAULTS} }}'
    library = standin_library(tmp_path / "lib", once)
    (tmp_path / "first").touch()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(library))
    assert self_test.examine().state == "unknown"
    assert not cache.exists()
    assert self_test.extra_buffers()


def test_nor_is_a_machine_without_a_place_for_files(cache: Path, tmp_path: Path) -> None:
    code = (
        "import os, tempfile\nfrom kconv.runtimes import self_test\n"
        f"tempfile.tempdir = {str(tmp_path / 'none')!r}\nprint(self_test.examine())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "state='unknown'" in done.stdout
    assert "TMPDIR" in done.stdout
    assert not cache.exists()


def test_the_library_is_found_where_only_its_ctypes_layer_is_loaded(cache: Path) -> None:
    code = (
        "from kconv.runtimes import self_test\nfrom kconv.core import child\n"
        "before = self_test.library_files()\nchild.llama_cpp()\n"
        "print(len(before), self_test.library_files() == before, self_test.extra_buffers())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, same, _ = done.stdout.split()
    assert int(count) > 2
    assert same == "True"


def test_nor_is_a_machine_without_memory(cache: Path) -> None:
    code = (
        "import resource\nfrom kconv.runtimes import self_test\n"
        "for size in (36, 48, 60, 68):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (size << 20, resource.RLIM_INFINITY))\n"
        "    print(self_test.examine().state)"
    )
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"unknown", "works"}
    assert "unknown" in done.stdout


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff\x00", b"[]", b"null", b'{"state": "works"}', b"[" * 100_000],
    ids=["empty", "no text", "a list", "null", "no key", "deep"],
)
def test_a_damaged_answer_is_asked_for_again(damage: bytes, cache: Path) -> None:
    before = self_test.extra_buffers()
    (kept,) = cache.iterdir()
    kept.write_bytes(damage)
    assert self_test.extra_buffers() == before
    assert json.loads(kept.read_bytes())["state"]


def _a_file_in_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "cache").touch()


def _no_home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "")


@pytest.mark.parametrize("trouble", [_a_file_in_the_way, _no_home])
def test_without_a_place_to_keep_it(
    trouble: Callable[[Path, pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trouble(tmp_path, monkeypatch)
    before = sorted(tmp_path.rglob("*"))
    assert self_test.examine().state != "unknown"
    assert self_test.extra_buffers() == (self_test.examine().state == "works")
    assert sorted(tmp_path.rglob("*")) == before


def test_many_at_once(cache: Path) -> None:
    code = "from kconv.runtimes import self_test; print(self_test.extra_buffers())"
    command = [sys.executable, "-c", code]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    description = {process.communicate()[0] for process in started}
    assert {process.returncode for process in started} == {0}
    assert len(description) == 1
    assert len(list(cache.iterdir())) == 1


def test_another_build_of_the_library_is_asked_anew(
    cache: Path, dying_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "lib"
    copy.mkdir()
    for file in dying_llama.glob("*.so"):
        (copy / file.name).symlink_to(file.resolve())
    (copy / "libllama.so").unlink()
    (copy / "libllama.so").write_bytes((dying_llama / "libllama.so").read_bytes())
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(copy))
    assert not self_test.extra_buffers()
    (kept,) = cache.iterdir()
    os.utime(copy / "libllama.so", ns=(1, 1))
    assert not self_test.extra_buffers()
    assert {kept} < set(cache.iterdir())


@pytest.mark.parametrize("name", llama_test_child.FORMATS)
def test_the_tiny_models_are_what_they_are_called(name: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    path.write_bytes(llama_test_child.model(name))
    tensors = gguf.GGUFReader(path).tensors
    assert {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1} == {name}
    (matrix,) = (tensor for tensor in tensors if tensor.name == "blk.0.attn_q.weight")
    weights = gguf.quants.dequantize(matrix.data, matrix.tensor_type)
    assert weights.shape == (256, 256)
    assert 0.01 < math.sqrt((weights**2).mean()) < 1
    assert len({row.tobytes() for row in weights[:30]}) == 30


def test_the_version_that_was_tried_is_the_one_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (asked,) = (line for line in project["project"]["dependencies"] if line.startswith("llama-cpp-python"))
    major, minor, patch = map(int, self_test.TRIED.split("."))
    assert asked == f"llama-cpp-python>={self_test.TRIED},<{major}.{minor}.{patch + 1}"
    assert f"llama_cpp_python=={self_test.TRIED}\n" in (ROOT / "constraints.txt").read_text("utf-8")
