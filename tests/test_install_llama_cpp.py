"""``make setup``'s llama-cpp-python, with the real pip and a source package that is quickly built.

It stands for one on a processor with AMX: built with ``-mno-amx-tile`` it works, else it dies as gcc 12's.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
from standin_material import (
    CPUINFO,
    dying_llama,
    libraries,
    standin_compiler,
    standin_library,
    standin_python,
)

from kconv.runtimes import self_test
from kconv.runtimes.compiler import WITHOUT_AMX

__all__ = ["dying_llama"]
TOOL = Path(__file__).parent.parent / "tools" / "install_llama_cpp.py"
VERSION = "0.3.36"
BACKEND = f"""
import os, pathlib, zipfile
LOG, LIBRARY, BROKEN, PACKAGE = {{paths}}
def build_wheel(folder, settings=None, metadata=None):
    flags = os.environ.get("CXXFLAGS", "")
    with open(LOG, "a") as log:
        log.write(flags + "\\n")
    library = pathlib.Path(LIBRARY if "-mno-amx-tile" in flags else BROKEN, "libllama.so")
    info = "llama_cpp_python-{VERSION}.dist-info/"
    with zipfile.ZipFile(folder + "/llama_cpp_python-{VERSION}-py3-none-any.whl", "w") as wheel:
        for name in ("llama_cpp.py", "_ctypes_extensions.py"):
            wheel.write(pathlib.Path(PACKAGE, name), "llama_cpp/" + name)
        wheel.write(library, "llama_cpp/lib/libllama.so")
        head = "Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {VERSION}\\n"
        wheel.writestr(info + "METADATA", head)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return wheel.filename.split("/")[-1]
"""
Setup = Callable[..., tuple[int, str]]


def source_package(folder: Path, log: Path, library: Path, broken: Path) -> None:
    """An sdist whose build takes a moment; each leaves a line with its CXXFLAGS in ``log``."""
    paths = tuple(str(path) for path in (log, library, broken, libraries().parent))
    files = {
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": BACKEND.replace("{paths}", repr(paths)),
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {VERSION}\n",
    }
    folder.mkdir()
    with tarfile.open(folder / f"llama_cpp_python-{VERSION}.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{VERSION}/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))


@pytest.fixture(scope="module")
def sound_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return standin_library(tmp_path_factory.mktemp("sound") / "lib", "")


@pytest.fixture
def setup(tmp_path: Path, sound_llama: Path, dying_llama: Path) -> Setup:
    """Run the tool in an environment (by name, made if new), on a processor, with a compiler."""
    (tmp_path / "constraints.txt").write_text(f"llama_cpp_python=={VERSION}\n")
    (tmp_path / "amx").write_text(CPUINFO)
    (tmp_path / "plain").write_text(CPUINFO.replace("amx_tile", ""))
    modules = [importlib.util.find_spec(name) for name in ("pip", "typing_extensions")]
    origins = [Path(module.origin) for module in modules if module is not None and module.origin is not None]
    packages = {"pip": origins[0].parent, "typing_extensions.py": origins[1]}

    def run(
        name: str, processor: str, writes: str = "mov $rows", broken: Path = dying_llama
    ) -> tuple[int, str]:
        if not (tmp_path / "dist").exists():
            source_package(tmp_path / "dist", tmp_path / "log", sound_llama, broken)
        python = tmp_path / name / "bin" / "python"
        if not python.exists():
            standin_python(tmp_path / name, packages, alone=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "LLAMA_"))}
        kept |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "dist")}
        kept |= {"PIP_NO_COMPILE": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # 0: there is none
        kept |= {"PIP_CACHE_DIR": str(tmp_path / "pip"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        kept |= {"CXX": str(standin_compiler(tmp_path, writes=writes)), "CXXFLAGS": "-DUSERS"}
        command = [str(python), str(TOOL), str(tmp_path / "constraints.txt"), str(tmp_path / processor)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    return run


def builds(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_a_sound_one_is_built_once_and_then_only_tried(
    setup: Setup, tmp_path: Path, sound_llama: Path
) -> None:
    code, output = setup("venv", "plain", broken=sound_llama)
    assert code == 0
    assert "llama.cpp is compiled, which takes" in output
    assert builds(tmp_path) == ["-DUSERS"]
    assert setup("venv", "plain") == (0, "")
    assert builds(tmp_path) == ["-DUSERS"]


def test_a_compiler_that_breaks_amx_builds_without_it_at_once(setup: Setup, tmp_path: Path) -> None:
    code, output = setup("venv", "amx", writes="ldtilecfg")
    assert code == 0
    assert "standin 1.0 breaks llama.cpp's AMX code" in output
    assert builds(tmp_path) == [f"-DUSERS {WITHOUT_AMX}"]
    assert not list((tmp_path / "pip").rglob("*.whl"))  # other projects shall not find it there


def test_one_that_dies_is_built_anew_past_the_cache(setup: Setup, tmp_path: Path) -> None:
    code, output = setup("first", "amx")  # this compiler keeps the stores, and yet it dies
    assert code == 0
    assert "crashes (signal 4, SIGILL) on Q8_0 weights in its own buffers: it is built anew" in output
    assert builds(tmp_path) == ["-DUSERS", f"-DUSERS {WITHOUT_AMX}"]
    assert setup("first", "amx") == (0, "")
    (cached,) = (tmp_path / "pip").rglob("*.whl")
    before = cached.read_bytes()
    code, output = setup("second", "amx")  # pip has kept the broken one, which now costs no build
    assert code == 0
    assert builds(tmp_path)[2:] == [f"-DUSERS {WITHOUT_AMX}"]
    assert setup("third", "amx", writes="ldtilecfg")[0] == 0  # known to be broken: not taken from there
    assert builds(tmp_path)[3:] == [f"-DUSERS {WITHOUT_AMX}"]
    assert cached.read_bytes() == before


def test_where_nothing_helps(setup: Setup, tmp_path: Path) -> None:
    standin_library(tmp_path / "lib")
    code, output = setup("venv", "plain", broken=tmp_path / "lib")
    assert code == 0  # kconv works without those buffers
    assert builds(tmp_path) == ["-DUSERS", "-DUSERS"]
    assert "kconv loads models without those buffers" in output
    assert "kconv doctor" in output
    shutil.rmtree(tmp_path / "lib")
    standin_library(tmp_path / "lib", when="1")  # what the next build brings works in no way
    code, output = setup("venv", "plain")
    assert code == 4
    assert "kconv cannot work with it" in output
    assert "kconv doctor" in output


def test_where_pip_fails(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "dist").mkdir()
    code, output = setup("venv", "plain")
    assert code == 1
    assert "pip could not install llama-cpp-python" in output


def test_here_it_costs_little_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP_LIB_PATH", raising=False)
    if self_test.examine().state != "works" or metadata.version("llama-cpp-python") != VERSION:
        pytest.skip("it would be built anew")
    command = [sys.executable, str(TOOL), str(TOOL.parent.parent / "constraints.txt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
