"""The C++ compiler here, what it makes of llama.cpp's AMX code, and the command that builds llama.cpp anew.

Standard library only: ``make setup`` asks before any package is there (``tools/install_llama_cpp.py``).
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.machine import Processor

PACKAGE = "llama-cpp-python"
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
FROM_SOURCE = ("--no-cache-dir", "--no-binary", PACKAGE)
PAST_THE_CACHE = (*FROM_SOURCE, "--force-reinstall", "--no-deps")
"""Options of pip: its cache keeps a wheel whatever flags it was built with, and is not to keep this one."""
_PATIENCE = 60.0

# llama.cpp's ggml_tile_config_init (ggml/src/ggml-cpu/amx/mmq.cpp). The tiles' rows stand behind the first
# eight bytes, all that gcc 12's _tile_loadconfig says it reads: the stores go, and what lay there is loaded.
_TILES = """
#include <immintrin.h>
#include <stdint.h>
struct tile_config { uint8_t palette, start, reserved[14]; uint16_t columns[16]; uint8_t rows[16]; };
void configure() {
    static thread_local bool done = false;
    if (done) return;
    alignas(64) tile_config config = {};
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
        config.rows[i] = ROWS;
        config.columns[i] = 64;
    }
    _tile_loadconfig(&config);
    done = true;
}
"""


@dataclass(frozen=True)
class Compiler:
    """``command`` as words, ``version`` the first line it says of itself."""

    command: tuple[str, ...]
    version: str


def compiler(environment: Mapping[str, str] | None = None) -> Compiler | None:
    """The C++ compiler CMake would take: that of ``CXX``, else the first found; None without one."""
    named = (os.environ if environment is None else environment).get("CXX", "")
    try:
        words = shlex.split(named)
    except ValueError:
        return None
    for command in [words] if words else (["c++"], ["g++"], ["clang++"]):
        if shutil.which(command[0]) is None:
            continue
        done = _run([*command, "--version"])
        if done is not None and done.returncode == 0:
            return Compiler(tuple(command), (done.stdout.splitlines() or ["?"])[0].strip())
    return None


def breaks_tiles(compiler: Compiler, environment: Mapping[str, str] | None = None) -> bool | None:
    """Whether it drops the stores of a tile configuration; None where it does not compile them at all.

    It compiles the function for two numbers of rows, with the user's ``CXXFLAGS``: the code is the same only
    if they are never stored. So this needs no processor with AMX.
    """
    try:
        flags = shlex.split((os.environ if environment is None else environment).get("CXXFLAGS", ""))
    except ValueError:
        return None
    code: list[str] = []
    with tempfile.TemporaryDirectory(prefix="kconv-probe-") as folder:
        source = Path(folder, "tiles.cpp")
        source.write_text(_TILES, "ascii")
        for rows in (8, 16):
            options = ["-O3", "-g0", "-std=gnu++17", "-mamx-tile", f"-DROWS={rows}", "-S"]
            files = ["-o", str(Path(folder, "tiles.s")), str(source)]
            done = _run([*compiler.command, *flags, *options, *files])
            if done is None or done.returncode:
                return None
            code.append(Path(folder, "tiles.s").read_text("utf-8", "replace"))
    return code[0] == code[1]


def flags_for(processor: Processor, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that build llama.cpp without AMX, after what they hold; none where there is no AMX."""
    if not processor.amx:
        return {}
    given = os.environ if environment is None else environment
    return {name: f"{given.get(name, '')} {WITHOUT_AMX}".strip() for name in ("CFLAGS", "CXXFLAGS")}


def rebuild_command(processor: Processor, version: str) -> str:
    """The command line that builds llama-cpp-python anew so that it runs here."""
    flags = [f"{name}={shlex.quote(value)}" for name, value in flags_for(processor, {}).items()]
    install = [sys.executable, "-m", "pip", "install", *PAST_THE_CACHE, f"{PACKAGE}=={version}"]
    return " ".join([*flags, shlex.join(install)])


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str] | None:
    """The end of a command; None where it cannot be run or does not end."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, timeout=_PATIENCE, env=environment,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired, ValueError):
        return None
