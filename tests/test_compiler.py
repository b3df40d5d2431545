"""Which compilers break llama.cpp's tile configuration, and the command that builds it anew."""

from __future__ import annotations

import platform
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from standin_material import standin_compiler

from kconv.core.machine import Processor
from kconv.runtimes import compiler

AMX = Processor("Xeon", frozenset({"amx_tile", "avx512f"}))
PLAIN = Processor("EPYC", frozenset({"avx512f"}))


@pytest.mark.parametrize(
    ("writes", "amx", "breaks"),
    [("mov $rows", ":", False), ("ldtilecfg", ":", True), ("mov $rows", "exit 1", None)],
    ids=["keeps the stores", "drops them", "knows no AMX"],
)
def test_a_compiler_is_told_by_its_code(writes: str, amx: str, breaks: bool | None, tmp_path: Path) -> None:
    installed = compiler.compiler({"CXX": str(standin_compiler(tmp_path, writes=writes, amx=amx))})
    assert installed is not None
    assert installed.version == "standin 1.0"
    assert compiler.breaks_tiles(installed) is breaks


def test_the_compilers_here() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("tiles are of x86-64")
    named = [
        "c++",
        "g++",
        *(f"g++-{n}" for n in range(11, 17)),
        "clang++",
        *(f"clang++-{n}" for n in (14, 19)),
    ]
    here = [name for name in named if shutil.which(name)]
    for name in here:
        installed = compiler.compiler({"CXX": name})
        assert installed is not None
        breaks, gcc = compiler.breaks_tiles(installed), re.search(r"\) (\d+)\.", installed.version)
        assert compiler.breaks_tiles(installed, {"CXXFLAGS": "--no-such-option"}) is None
        assert compiler.breaks_tiles(installed, {"CXXFLAGS": "'"}) is None
        if "clang" in installed.version:
            assert breaks is False
        elif gcc and gcc[1] in ("11", "12"):
            assert breaks is True


def test_which_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = standin_compiler(tmp_path, writes="x")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CXX", raising=False)
    assert compiler.compiler() == compiler.Compiler(("c++",), "standin 1.0")
    assert compiler.compiler({"CXX": f"{path} -pipe"}) == compiler.Compiler(
        (str(path), "-pipe"), "standin 1.0"
    )
    assert compiler.compiler({"CXX": "no-such-compiler"}) is None
    assert compiler.compiler({"CXX": "'"}) is None
    path.write_text("#!/bin/sh\nexit 1\n")
    assert compiler.compiler({"CXX": str(path)}) is None


def test_flags_are_added_to_those_of_the_user() -> None:
    given = {"CXXFLAGS": "-O2 -DX='a b'"}
    assert compiler.flags_for(PLAIN, given) == {}
    flags = compiler.flags_for(AMX, given)
    assert flags["CFLAGS"] == compiler.WITHOUT_AMX
    assert flags["CXXFLAGS"] == f"-O2 -DX='a b' {compiler.WITHOUT_AMX}"


def test_the_command_that_mends_it() -> None:
    words = shlex.split(compiler.rebuild_command(AMX, "0.3.36"))
    assert words[:2] == [f"{name}={compiler.WITHOUT_AMX}" for name in ("CFLAGS", "CXXFLAGS")]
    assert words[2:6] == [sys.executable, "-m", "pip", "install"]
    assert words[-1] == "llama-cpp-python==0.3.36"
    assert {"--no-cache-dir", "--force-reinstall", "--no-binary", "--no-deps"} < set(words)
    assert shlex.split(compiler.rebuild_command(PLAIN, "0.3.36")) == words[2:]
