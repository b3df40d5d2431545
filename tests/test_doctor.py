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


def findings(output: str) -> dict[str, Any]:
    return {finding["name"]: finding for finding in json.loads(output)["findings"]}


@pytest.fixture
def cache(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def test_here(cache: str) -> None:
    code, output = doctor("--json", XDG_CACHE_HOME=cache)
    checks = findings(output)
    assert list(checks) == NAMES
    assert code == (4 if json.loads(output)["broken"] else 0)
    assert checks["versions"]["figures"]["Python"] == sys.version.split()[0]
    assert checks["processor"]["figures"]["model"] == processor().model
    assert checks["memory"]["figures"]["total"] > 1 << 28
    assert checks["disk"]["figures"]["folder"] == os.getcwd()
    assert "broken" not in (checks["kernels"]["level"], checks["onnxruntime"]["level"])
    assert checks["Hub cache"]["figures"]["folder"]


def test_in_words(cache: str) -> None:
    code, output = doctor(XDG_CACHE_HOME=cache)
    assert [line.split("  ")[0] for line in output.splitlines() if line[:1].strip()][: len(NAMES)] == NAMES
    assert ("kconv works here" in output) == (code == 0)


def test_a_llama_cpp_that_dies_as_installed(dying_llama: Path, cache: str, tmp_path: Path) -> None:
    package = standin_package(tmp_path / "llama_cpp", dying_llama)
    python = standin_python(tmp_path / "venv", {"llama_cpp": package})
    code, output = doctor("--json", python=python, XDG_CACHE_HOME=cache)
    assert code == 4
    assert json.loads(output)["broken"] == ["llama.cpp"]
    checks = findings(output)["llama.cpp"]
    assert "crashes (signal 4, SIGILL) on Q8_0 weights in its own buffers" in checks["text"]
    assert "kconv loads models without them" in checks["text"]
    assert checks["figures"] == {"state": "dies", "format": "Q8_0", "extra_buffers": False}
    assert shlex.split(checks["mend"])[-1] == "llama-cpp-python==0.3.36"
    assert f"{python} -m pip install" in checks["mend"]
    assert (compiler.WITHOUT_AMX in checks["mend"]) == processor().amx


def test_a_llama_cpp_that_dies_in_a_folder_of_its_own(dying_llama: Path, cache: str) -> None:
    code, output = doctor(XDG_CACHE_HOME=cache, LLAMA_CPP_LIB_PATH=str(dying_llama))
    assert code == 4
    assert "broken: crashes (signal 4, SIGILL)" in output
    assert "to fix it: unset LLAMA_CPP_LIB_PATH" in output
    assert output.endswith("\nbroken: llama.cpp\n")


def test_libraries_that_crash_or_are_missing(cache: str, tmp_path: Path) -> None:
    onnxruntime = tmp_path / "onnxruntime"
    onnxruntime.mkdir()
    (onnxruntime / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)\n")
    llama = tmp_path / "llama_cpp"
    llama.mkdir()
    (llama / "__init__.py").write_text("")
    (llama / "llama_cpp.py").write_text("raise FileNotFoundError('no libllama')\n")
    python = standin_python(tmp_path / "venv", {"onnxruntime": onnxruntime, "llama_cpp": llama})
    code, output = doctor("--json", python=python, XDG_CACHE_HOME=cache)
    assert code == 4
    assert json.loads(output)["broken"] == ["kernels", "llama.cpp", "onnxruntime"]  # libggml is llama.cpp's
    checks = findings(output)
    assert "crashes (signal 11, SIGSEGV)" in checks["onnxruntime"]["text"]
    assert checks["onnxruntime"]["mend"].endswith("--no-cache-dir onnxruntime")
    assert "cannot be loaded: no libllama" in checks["llama.cpp"]["text"]


def test_what_is_not_installed(cache: str) -> None:
    hide = (
        "import importlib.util as util; find = util.find_spec\n"
        "gone = ('onnxruntime', 'llama_cpp')\n"
        "util.find_spec = lambda name, *rest: None if name in gone else find(name, *rest)"
    )
    code, output = doctor("--json", start=hide, XDG_CACHE_HOME=cache)
    checks = findings(output)
    assert code == 4
    assert checks["onnxruntime"]["level"] == "ok"
    assert "onnxruntime not installed" in checks["onnxruntime"]["text"]
    assert "llama-cpp-python is not installed" in checks["llama.cpp"]["text"]
    assert f"pip install llama-cpp-python=={self_test.TRIED}" in checks["llama.cpp"]["mend"]


def test_the_folder_is_gone_and_there_is_no_place_for_files(cache: str, tmp_path: Path) -> None:
    lost = tmp_path / "lost"
    start = (
        f"import os; os.mkdir({str(lost)!r}); os.chdir({str(lost)!r}); os.rmdir({str(lost)!r})\n"
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    )
    code, output = doctor("--json", start=start, XDG_CACHE_HOME=cache)
    assert code == 4
    checks = findings(output)
    assert {"disk", "temporary files"} <= set(json.loads(output)["broken"])
    assert "no longer exists" in checks["disk"]["text"]
    assert "TMPDIR" in checks["temporary files"]["mend"]
    assert checks["limits"]["level"] == "warning"


def test_little_memory_and_few_files(cache: str) -> None:
    start = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))"
    )
    _, output = doctor("--json", start=start, XDG_CACHE_HOME=cache)
    checks = findings(output)
    assert checks["memory"]["level"] == checks["limits"]["level"] == "warning"
    assert "ulimit -v" in checks["memory"]["text"]
    assert checks["limits"]["mend"] == "ulimit -n 1024"


def test_a_tmpdir_that_is_not_there(cache: str, tmp_path: Path) -> None:
    _, output = doctor("--json", XDG_CACHE_HOME=cache, TMPDIR=str(tmp_path / "none"))
    checks = findings(output)["temporary files"]
    assert checks["level"] == "warning"
    assert "cannot be written" in checks["text"]
    assert "temporary files" not in json.loads(output)["broken"]


def test_where_the_hub_keeps_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert resources.hub_cache().figures["folder"] == os.path.expanduser(constants.default_cache_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "home/hub/models--a--b").mkdir(parents=True)
    actual = resources.hub_cache()
    assert actual.figures["folder"] == str(tmp_path / "home/hub")
    assert "1 model, " in actual.text
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert "does not exist" in resources.hub_cache().text
