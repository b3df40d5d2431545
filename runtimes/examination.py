"""What ``kconv doctor`` looks at: this machine, what kconv stands on, and whether it works here.

Each look gives one Finding and ends in one whatever it meets: what may crash runs in a child process.
"""

from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import ChildDied, KconvError
from ..core.machine import processor
from ..core.system_processes import CRASHES, signal_name
from . import compiler, resources, self_test
from .finding import Finding

_FEATURES = {
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX VNNI",
    "amx_tile": "AMX", "asimd": "NEON", "asimddp": "dot products", "i8mm": "int8 matrices", "sve": "SVE",
}  # fmt: skip
_MOST = 1 << 16  # bytes of what the child that tries kernels may say
_PATIENCE = 60.0


def examine(versions: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything, in the order of the report. ``versions`` are those of packages, to be passed on."""
    yield _guarded("processor", _processor)
    yield _guarded("compiler", _compiler)
    yield _guarded("versions", lambda: _versions(versions))
    yield _guarded("kernels", _kernels)
    yield _guarded("llama.cpp", _llama_cpp)
    yield _guarded("onnxruntime", _onnxruntime)
    yield _guarded("memory", resources.memory)
    yield _guarded("limits", resources.limits)
    yield _guarded("disk", resources.working_folder)
    yield _guarded("temporary files", resources.temporary_folder)
    yield _guarded("Hub cache", resources.hub_cache)


def _guarded(name: str, look: Callable[[], Finding]) -> Finding:
    """What ``look`` finds; an exception is a finding, too: this is for machines where things go wrong."""
    try:
        return look()
    except KconvError as error:
        return Finding(name, f"could not be tried: {error.message}", "broken", error.hint)
    except Exception as error:
        return Finding(name, f"cannot be examined: {type(error).__name__}: {error}", "broken")


def _processor() -> Finding:
    cpu = processor()
    features = [title for flag, title in _FEATURES.items() if flag in cpu.flags]
    figures = {"model": cpu.model, "flags": sorted(cpu.flags), "cores": os.cpu_count()}
    return Finding("processor", f"{cpu.model}, {os.cpu_count()} cores: {', '.join(features) or 'plain'}",
                   figures=figures)  # fmt: skip


def _compiler() -> Finding:
    """Only building needs one; whether it breaks llama.cpp's AMX code matters where the processor has AMX."""
    installed = compiler.compiler()
    if installed is None:
        return Finding("compiler", "no C++ compiler (only needed for installing)", figures={"version": None})
    breaks = compiler.breaks_tiles(installed) if processor().amx else None
    description = f"{installed.version}; it breaks llama.cpp's AMX code" if breaks else installed.version
    figures = {"command": list(installed.command), "version": installed.version, "breaks_amx": breaks}
    return Finding("compiler", description, figures=figures)


def _versions(versions: Mapping[str, str]) -> Finding:
    shown = {"Python": sys.version.split()[0], **versions}
    description = ", ".join(f"{name} {version}" for name, version in shown.items())
    own = ("kconv", compiler.PACKAGE, "onnx", "onnxruntime")  # told of elsewhere, or not needed by all
    missing = [name for name, version in versions.items() if version == "not installed" and name not in own]
    if missing:
        mend = f"{sys.executable} -m pip install {' '.join(missing)}"
        return Finding("versions", description, "broken", mend, shown)
    return Finding("versions", description, figures=shown)


def _kernels() -> Finding:
    """Which of kconv's kernels encode here, with libggml's bytes; libggml itself runs in it, too."""
    try:
        answer = retry_once(_kernels_of_child)
    except ChildRefused as refusal:
        description, *rest = refusal.words or ("cannot be used",)
        return Finding(
            "kernels", description, "broken", rest[0].removeprefix("what to do: ") if rest else None
        )
    except ChildDied as death:
        return _died("kernels", death)
    figures = {name: answer[name] for name in ("name", "why", "equal", "different")}
    if not answer["equal"]:
        return Finding("kernels", f"libggml encodes: {answer['why']}", figures=figures)
    description = (
        f"{answer['name']} ({answer['why']}), byte-identical to libggml in {len(answer['equal'])} formats"
    )
    if answer["different"]:
        description += f"; by libggml, since the kernels give other bytes: {', '.join(answer['different'])}"
    return Finding("kernels", description, "warning" if answer["different"] else "ok", figures=figures)


def _kernels_of_child() -> Any:
    with Child("kconv.runtimes.kernels_child", library="libggml", patience=_PATIENCE) as child:
        (size,) = struct.unpack("<I", child.receive(4))
        return json.loads(child.receive(min(size, _MOST)))


def _llama_cpp() -> Finding:
    if find_spec("llama_cpp") is None:
        mend = f"{sys.executable} -m pip install {compiler.PACKAGE}=={self_test.TRIED}"
        return Finding("llama.cpp", f"{compiler.PACKAGE} is not installed", "broken", mend)
    result = self_test.examine()
    figures = {"state": result.state, "format": result.format, "extra_buffers": result.state == "works"}
    version = metadata.version(compiler.PACKAGE)
    if result.state == "works":
        if version == self_test.TRIED:
            return Finding("llama.cpp", result.description, figures=figures)
        description = (
            f"{result.description}; but this is {compiler.PACKAGE} {version}: "
            f"kconv was tried with {self_test.TRIED}"
        )
        mend = f"{sys.executable} -m pip install {compiler.PACKAGE}=={self_test.TRIED}"
        return Finding("llama.cpp", description, "warning", mend, figures)
    if result.state == "unknown":
        return Finding("llama.cpp", f"could not be tried: {result.words}", "broken", result.hint, figures)
    description = result.description
    if result.state != "broken":
        description += "; kconv loads models without them, more slowly"
    if self_test.LIBRARY_VARIABLE in os.environ:
        description += f" ({self_test.LIBRARY_VARIABLE}={os.environ[self_test.LIBRARY_VARIABLE]})"
        return Finding("llama.cpp", description, "broken", f"unset {self_test.LIBRARY_VARIABLE}", figures)
    return Finding(
        "llama.cpp", description, "broken", compiler.rebuild_command(processor(), self_test.TRIED), figures
    )


def _onnxruntime() -> Finding:
    """Missing is no fault: only ONNX folders need it."""
    missing = [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]
    if missing:
        description = (
            f"{' and '.join(missing)} not installed; only ONNX folders need it: pip install 'kconv[onnx]'"
        )
        return Finding("onnxruntime", description, figures={"installed": False})
    try:
        retry_once(_square_of_child)
    except ChildRefused as refusal:
        description = f"fails: {' / '.join(refusal.words[-2:]) or f'a limit of {refusal.limit}'}"
        return Finding("onnxruntime", description, "broken", _anew("onnxruntime"), {"installed": True})
    except ChildDied as death:
        return _died("onnxruntime", death)
    return Finding("onnxruntime", "works", figures={"installed": True})


def _square_of_child() -> None:
    with Child("kconv.runtimes.onnx_test_child", library="onnxruntime", patience=_PATIENCE) as child:
        child.receive(1)


def _died(name: str, death: ChildDied) -> Finding:
    """A crash is the library's fault; for other deaths the hint names the cause."""
    if death.signal not in CRASHES:
        return Finding(name, f"could not be tried: {death.message}", "broken", death.hint)
    crash = f"crashes (signal {death.signal}, {signal_name(death.signal)})"
    if name == "onnxruntime":
        return Finding(name, crash, "broken", _anew(name), {"installed": True})
    return Finding(name, f"libggml or they {crash.replace('crashes', 'crash')}", "broken",
                   compiler.rebuild_command(processor(), self_test.TRIED))  # fmt: skip


def _anew(package: str) -> str:
    return f"{sys.executable} -m pip install --force-reinstall --no-deps --no-cache-dir {package}"
