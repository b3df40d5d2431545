"""``kconv doctor`` on this machine, and where things are broken."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from standin_material import dying_llama, standin_package, standin_python

from kconv.core.machine import processor
from kconv.runtimes import compiler, resources, self_test

__all__ = ["dying_llama"]
NAMES = ["processor", "compiler", "versions", "kernels", "llama.cpp", "onnxruntime"]
NAMES += ["memory", "limits", "disk", "temporary files", "Hub cache"]


def doctor(
    *options: str, python: Path | str = sys.executable, start: str = "", **variables: str
) -> tuple[int, str]:
    """Exit code and standard output; ``start`` is Python that runs before kconv."""
    code = f"{start}\nimport sys; from kconv.cli.main import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
    environment = {name: value for name, value in os.environ.items() if name != "LLAMA_CPP_LIB_PATH"}
    done = subprocess.run(
        [str(python), "-c", code, *options], capture_output=True, text=True, check=False,
        env={**environment, **variables},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def findings(said: str) -> dict[str, Any]:
    return {finding["name"]: finding for finding in json.loads(said)["findings"]}


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def test_here(cache: str) -> None:
    code, said = doctor("--json", XDG_CACHE_HOME=cache)
    found = findings(said)
    assert list(found) == NAMES
    assert code == (4 if json.loads(said)["broken"] else 0)
    assert found["versions"]["figures"]["Python"] == sys.version.split()[0]
    assert found["processor"]["figures"]["model"] == processor().model
    assert found["memory"]["figures"]["total"] > 1 << 28
    assert found["disk"]["figures"]["folder"] == os.getcwd()
    assert "broken" not in (found["kernels"]["level"], found["onnxruntime"]["level"])
    assert found["Hub cache"]["figures"]["folder"]


def test_in_words(cache: str) -> None:
    code, said = doctor(XDG_CACHE_HOME=cache)
    assert [line.split("  ")[0] for line in said.splitlines() if line[:1].strip()][: len(NAMES)] == NAMES
    assert ("kconv works here" in said) == (code == 0)


def test_a_llama_cpp_that_dies_as_installed(dying_llama: Path, cache: str, tmp_path: Path) -> None:
    package = standin_package(tmp_path / "llama_cpp", dying_llama)
    python = standin_python(tmp_path / "venv", {"llama_cpp": package})
    code, said = doctor("--json", python=python, XDG_CACHE_HOME=cache)
    assert code == 4
    assert json.loads(said)["broken"] == ["llama.cpp"]
    found = findings(said)["llama.cpp"]
    assert "crashes (signal 4, SIGILL) on Q8_0 weights in its own buffers" in found["text"]
    assert "kconv loads models without them" in found["text"]
    assert found["figures"] == {"state": "dies", "format": "Q8_0", "extra_buffers": False}
    assert shlex.split(found["mend"])[-1] == "llama-cpp-python==0.3.36"
    assert f"{python} -m pip install" in found["mend"]
    assert (compiler.WITHOUT_AMX in found["mend"]) == processor().amx


def test_a_llama_cpp_that_dies_in_a_folder_of_its_own(dying_llama: Path, cache: str) -> None:
    code, said = doctor(XDG_CACHE_HOME=cache, LLAMA_CPP_LIB_PATH=str(dying_llama))
    assert code == 4
    assert "broken: crashes (signal 4, SIGILL)" in said
    assert "to fix it: unset LLAMA_CPP_LIB_PATH" in said
    assert said.endswith("\nbroken: llama.cpp\n")


def test_libraries_that_crash_or_are_missing(cache: str, tmp_path: Path) -> None:
    onnxruntime = tmp_path / "onnxruntime"
    onnxruntime.mkdir()
    (onnxruntime / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    llama = tmp_path / "llama_cpp"
    llama.mkdir()
    (llama / "__init__.py").write_text("")
    (llama / "llama_cpp.py").write_text("raise FileNotFoundError('no libllama')\n")
    python = standin_python(tmp_path / "venv", {"onnxruntime": onnxruntime, "llama_cpp": llama})
    code, said = doctor("--json", python=python, XDG_CACHE_HOME=cache)
    assert code == 4
    assert json.loads(said)["broken"] == ["kernels", "llama.cpp", "onnxruntime"]  # libggml is llama.cpp's
    found = findings(said)
    assert "crashes (signal 11, SIGSEGV)" in found["onnxruntime"]["text"]
    assert found["onnxruntime"]["mend"].endswith("--no-cache-dir onnxruntime")
    assert "cannot be loaded: no libllama" in found["llama.cpp"]["text"]


def test_what_is_not_installed(cache: str) -> None:
    hide = (
        "import importlib.util as util; find = util.find_spec\n"
        "gone = ('onnxruntime', 'llama_cpp')\n"
        "util.find_spec = lambda name, *rest: None if name in gone else find(name, *rest)"
    )
    code, said = doctor("--json", start=hide, XDG_CACHE_HOME=cache)
    found = findings(said)
    assert code == 4
    assert found["onnxruntime"]["level"] == "ok"
    assert "onnxruntime not installed" in found["onnxruntime"]["text"]
    assert "llama-cpp-python is not installed" in found["llama.cpp"]["text"]
    assert f"pip install llama-cpp-python=={self_test.TRIED}" in found["llama.cpp"]["mend"]


def test_the_folder_is_gone_and_there_is_no_place_for_files(cache: str, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    start = (
        f"import os; os.mkdir({str(lost)!r}); os.chdir({str(lost)!r}); os.rmdir({str(lost)!r})\n"
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    )
    code, said = doctor("--json", start=start, XDG_CACHE_HOME=cache)
    assert code == 4
    found = findings(said)
    assert {"disk", "temporary files"} <= set(json.loads(said)["broken"])
    assert "no longer exists" in found["disk"]["text"]
    assert "TMPDIR" in found["temporary files"]["mend"]
    assert found["limits"]["level"] == "warning"


def test_little_memory_and_few_files(cache: str) -> None:
    start = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"
    )
    _, said = doctor("--json", start=start, XDG_CACHE_HOME=cache)
    found = findings(said)
    assert found["memory"]["level"] == found["limits"]["level"] == "warning"
    assert "ulimit -v" in found["memory"]["text"]
    assert found["limits"]["mend"] == "ulimit -n 1024"


def test_a_tmpdir_that_is_not_there(cache: str, tmp_path: Path) -> None:
    _, said = doctor("--json", XDG_CACHE_HOME=cache, TMPDIR=str(tmp_path / "none"))
    found = findings(said)["temporary files"]
    assert found["level"] == "warning"
    assert "cannot be written" in found["text"]
    assert "temporary files" not in json.loads(said)["broken"]


def test_where_the_hub_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert resources.hub_cache().figures["folder"] == os.path.expanduser(constants.default_cache_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "home/hub/models--a--b").mkdir(parents=True)
    found = resources.hub_cache()
    assert found.figures["folder"] == str(tmp_path / "home/hub")
    assert "1 model, " in found.text
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert "does not exist" in resources.hub_cache().text
