"""Build llama-imatrix and llama-perplexity, for the bench that compares kconv with them.

Of the llama.cpp that comes in llama-cpp-python's source distribution, as tools/fetch_llama_cpp.py gets its
converter: the same one the installed library was built from. Compiled for this processor by cmake (``pip
install cmake`` where the system has none) into .dev/llama.cpp-programs, which git ignores; about six minutes
on two cores, nothing the next time.

    python tools/build_llama_programs.py         prints the folder of the programs
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from fetch_llama_cpp import STAMP, FetchError, fetch

PROGRAMS = ("llama-imatrix", "llama-perplexity")
TARGET = Path(__file__).resolve().parent.parent / ".dev" / "llama.cpp-programs"
SOURCE = (
    *("CMakeLists.txt", "LICENSE", "cmake", "common", "ggml", "include", "src", "vendor", "licenses"),
    *("convert_hf_to_gguf.py", "tools"),
)
LEFT_OUT = ("TESTS", "EXAMPLES", "SERVER")


def build(target: Path = TARGET) -> Path:
    """The folder with the programs, made unless they are there. Raises FetchError."""
    stamp = target / ".built"
    if stamp.is_file() and stamp.read_text("utf-8") == STAMP:
        return target / "bin"
    if (cmake := shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")) is None:
        raise FetchError("cmake is missing; `pip install cmake` has it")
    shutil.rmtree(target, ignore_errors=True)
    source, made = fetch(target / "source", wanted=SOURCE), target / "made"
    settings = ["CMAKE_BUILD_TYPE=Release", "BUILD_SHARED_LIBS=OFF", "LLAMA_CURL=OFF", "LLAMA_OPENSSL=OFF"]
    settings += [f"LLAMA_BUILD_{part}=OFF" for part in LEFT_OUT]
    words = [cmake, "-S", str(source), "-B", str(made), *(f"-D{setting}" for setting in settings)]
    _run(words)
    cores = len(os.sched_getaffinity(0))
    _run([cmake, "--build", str(made), "--parallel", str(cores), "--target", *PROGRAMS])
    (target / "bin").mkdir()
    for program in PROGRAMS:
        shutil.copy2(made / "bin" / program, target / "bin" / program)
    for used in (source, made):
        shutil.rmtree(used)
    stamp.write_text(STAMP, "utf-8")
    return target / "bin"


def _run(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FetchError(f"{' '.join(words[:4])} … failed:\n{(done.stdout + done.stderr)[-2000:]}")


def main() -> int:
    """Print where the programs lie; 4 when they cannot be had."""
    try:
        print(build())
    except FetchError as error:
        print(f"build_llama_programs: {error}", file=sys.stderr)
        return 4
    return 0


if __name__ == "__main__":
    sys.exit(main())
