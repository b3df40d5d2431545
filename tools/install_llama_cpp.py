"""``make setup``'s part that installs a llama-cpp-python that runs on this machine.

    python tools/install_llama_cpp.py constraints.txt [cpuinfo]

gcc 12 drops the stores of llama.cpp's tile configuration, and on a processor with AMX the first product of
quantized weights then is an illegal instruction. Where both come together it is built without AMX at once.
Whatever was installed is tried on tiny models afterwards, and built anew only if it fails: pip's cache may
hold a wheel that another compiler made, or another machine. Wheels in ``LLAMA_CPP_WHEELS``, a folder or a
URL (``tools/build_llama_wheels.py``), are taken in place of compiling. Where all is well this takes a
fraction of a second. Standard library and kconv's own files only; kconv need not be installed. ``cpuinfo`` is
a file to read in place of ``/proc/cpuinfo``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import types
from importlib import invalidate_caches, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_package = types.ModuleType("kconv")  # as core/child.py does: this very tree
_package.__path__ = [str(ROOT)]
sys.modules["kconv"] = _package

from kconv.core.machine import CPUINFO, processor  # noqa: E402
from kconv.runtimes import self_test  # noqa: E402
from kconv.runtimes.compiler import (  # noqa: E402
    FROM_SOURCE,
    PACKAGE,
    PAST_THE_CACHE,
    breaks_tiles,
    compiler,
    flags_for,
)

WHEELS = "LLAMA_CPP_WHEELS"
"""The variable that names a folder, or a URL, of wheels."""
CPU = processor(Path(sys.argv[2]) if len(sys.argv) > 2 else CPUINFO)


def say(text: str) -> None:
    """A line of ``make setup``."""
    print(text, flush=True)


def wanted(constraints: Path) -> str:
    """The version that ``constraints`` name."""
    match = re.search(r"^llama[-_]cpp[-_]python==(\S+)", constraints.read_text("utf-8"), re.MULTILINE)
    return match[1] if match else self_test.TRIED


def installed() -> str | None:
    """The version that is there already."""
    invalidate_caches()
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def install_wheel(version: str, constraints: Path, index: str) -> None:
    """Have pip install a wheel that lies there. Ends the program where none fits."""
    page = f"{index.rstrip('/')}/{PACKAGE}/" if "://" in index else str(Path(index, PACKAGE).resolve())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints)]
    began = time.monotonic()
    done = subprocess.run(
        [*command, "--find-links", page, "--only-binary", PACKAGE, f"{PACKAGE}=={version}"], check=False
    )
    if done.returncode:
        sys.exit(
            f"pip could not install {PACKAGE} {version} from {page}: has it a wheel for this system? "
            f"Without {WHEELS} llama.cpp is compiled, in 3 to 10 minutes"
        )
    say(f"{PACKAGE} {version} is installed from {page}, after {time.monotonic() - began:.0f} s")


def install(version: str, constraints: Path, *, anew: bool, without_amx: bool) -> None:
    """Have pip install it; ``anew`` past its cache. Ends the program where that fails."""
    options = PAST_THE_CACHE if anew else FROM_SOURCE if without_amx else ()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(constraints), *options]
    say(f"{PACKAGE} {version}: without a wheel of it llama.cpp is compiled, which takes 3 to 10 minutes")
    began = time.monotonic()
    environment = {**os.environ, **(flags_for(CPU) if without_amx else {})}
    done = subprocess.run([*command, f"{PACKAGE}=={version}"], env=environment, check=False)
    if done.returncode:
        sys.exit(f"pip could not install {PACKAGE}; it needs a C++ compiler (Debian: apt install g++)")
    say(f"{PACKAGE} {version} is installed, after {time.monotonic() - began:.0f} s")


def compiler_breaks_tiles() -> bool:
    """Whether llama.cpp has to be built without AMX here: only asked where the processor has it."""
    installed = compiler() if CPU.amx else None
    if installed is None or not breaks_tiles(installed):
        return False
    say(f"{installed.version} breaks llama.cpp's AMX code, which this processor would run: built without AMX")
    return True


def main() -> int:
    """Install, try, and build once more where that fails."""
    constraints = Path(sys.argv[1])
    version = wanted(constraints)
    index = os.environ.get(WHEELS, "")
    if installed() != version and index:
        install_wheel(version, constraints, index)
    elif installed() != version:
        install(version, constraints, anew=False, without_amx=compiler_breaks_tiles())
    result = self_test.examine()
    if result.state in ("dies", "differs", "broken") and self_test.LIBRARY_VARIABLE not in os.environ:
        say(f"llama.cpp {result.description}: it is built anew")
        install(version, constraints, anew=True, without_amx=CPU.amx)
        result = self_test.examine()
    if result.state == "works":
        return 0
    if result.state == "unknown":
        say(f"llama.cpp could not be tried: {result.description}; .venv/bin/kconv doctor tries again")
        return 0
    say(f"llama.cpp {result.description}")
    if result.state == "broken":
        say("kconv cannot work with it; .venv/bin/kconv doctor says more once kconv is installed")
        return 4
    say("kconv loads models without those buffers, more slowly; .venv/bin/kconv doctor says what mends it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
