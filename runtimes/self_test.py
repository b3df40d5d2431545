"""Whether llama.cpp works on this machine, and with its own buffers for weights.

llama.cpp repacks quantized weights into buffers of its own ("extra" ones) that suit the processor. Built by a
compiler that breaks that code, or for another processor, it dies at the first product with them, while
all else works: gcc 12 on processors with AMX (llama.cpp pull request 26954). So a child process tries tiny
models first (``llama_test_child.py``), once for a build of the library and a processor; the answer is kept
in the user's cache folder. What killed the child from outside is no answer, and is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from ..core.children import Child, ChildRefused
from ..core.errors import ChildDied, EnvironmentProblem
from ..core.machine import cache_folder, processor
from ..core.system_files import rename
from ..core.system_processes import CRASHES, LIBRARY_PATTERNS, signal_name
from . import llama_test_child as protocol

TRIED = "0.3.36"
"""The version of llama-cpp-python that kconv was tried with."""
LIBRARY_VARIABLE = "LLAMA_CPP_LIB_PATH"  # llama-cpp-python's own: another folder of libraries

State = Literal["works", "dies", "differs", "broken", "unknown"]
_VERSION = 1  # of the test: an answer of another is not taken
_MOST = 0.01  # NMSE of logits with extra buffers to those without; some round activations anew
_PATIENCE = 60.0


@dataclass(frozen=True)
class SelfTest:
    """The result of trying llama.cpp.

    ``works``: with and without its own buffers. ``dies``: with them only. ``differs``: with them it computes
    something else. ``broken``: even without them. ``unknown``: it could not be tried, or not twice with one
    end. ``format`` is that of the weights at which it failed, ``words`` what happened, in a clause.
    """

    state: State
    format: str | None = None
    words: str = ""
    hint: str | None = None

    @property
    def description(self) -> str:
        """What happened, to which weights: the rest of a sentence about llama.cpp."""
        if self.state == "works":
            return "works, both with and without its own weight buffers"
        if self.state == "unknown" or self.format is None:
            return self.words
        description = f"{self.words} on {self.format} weights"
        return description if self.state == "broken" else f"{description} in its own buffers"


def extra_buffers() -> bool:
    """Whether models may be loaded with llama.cpp's extra buffers; False where that is not known."""
    key = _key()
    kept = _kept(key)
    return (kept or examine()).state == "works"


def examine() -> SelfTest:
    """Try llama.cpp now, at most twice, and keep the answer. Never raises over what it finds."""
    key = _key()
    result = _attempt()
    if result.state != "works":
        again = _attempt()
        if result.state == "unknown":
            result = again
        elif again.state != result.state:
            result = replace(result, state="unknown", words=f"{result.words}; not on the second try")
    if result.state in ("works", "dies", "differs"):
        _keep(key, result)
    return result


def library_files() -> list[Path]:
    """The shared libraries of the llama.cpp in use; none where it is not installed."""
    named = os.environ.get(LIBRARY_VARIABLE)
    places = [Path(named)] if named else [Path(folder, "lib") for folder in _package_folders()]
    return sorted({file for place in places for pattern in LIBRARY_PATTERNS for file in place.glob(pattern)})


def _package_folders() -> Sequence[str]:
    try:
        spec = importlib.util.find_spec("llama_cpp")
    except ValueError:  # core/child.py has loaded its ctypes layer alone in this process
        return list(sys.modules["llama_cpp"].__path__)
    return [] if spec is None else spec.submodule_search_locations or []


def _attempt() -> SelfTest:
    name, plain = None, False
    try:
        with Child(
            "kconv.runtimes.llama_test_child",
            library="llama.cpp",
            patience=_PATIENCE,
        ) as child:
            for name in protocol.FORMATS:
                plain = False
                child.receive(1)
                plain = True
                (difference,) = protocol.ANSWER.unpack(child.receive(protocol.ANSWER.size))
                if not difference <= _MOST:
                    how = "other logits than" if math.isfinite(difference) else "no numbers, unlike"
                    return SelfTest("differs", name, f"gives {how} without them (NMSE {difference:.2g})")
    except ChildRefused as refusal:
        words = " / ".join(refusal.words[-2:]) or f"hits a limit of {refusal.limit}"
        if refusal.code == protocol.CANNOT_LOAD:
            return SelfTest("broken", None, f"cannot be loaded: {words}")
        if refusal.code == protocol.TOO_OLD:
            return SelfTest("broken", None, words)
        return SelfTest("dies" if plain else "broken", name, f"stops: {words}")
    except ChildDied as death:
        if death.signal not in CRASHES:
            return SelfTest("unknown", name, death.message, death.hint)
        title = f"signal {death.signal}, {signal_name(death.signal)}"
        return SelfTest("dies" if plain else "broken", name, f"crashes ({title})")
    except EnvironmentProblem as problem:
        return SelfTest("unknown", name, problem.message, problem.hint)
    return SelfTest("works")


def _key() -> list[object]:
    """What an answer holds for: this build of the library on this processor."""
    files: list[object] = [_VERSION, platform.machine(), platform.release()]
    cpu = processor()
    files += [cpu.model, " ".join(sorted(cpu.flags))]
    for path in library_files():
        with contextlib.suppress(OSError):
            status = path.stat()
            files.append([str(path.resolve()), status.st_size, status.st_mtime_ns])
    return files


def _place(key: Sequence[object]) -> Path | None:
    folder = cache_folder()
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    return folder and folder / f"llama-self-test-{name}.json"


def _kept(key: Sequence[object]) -> SelfTest | None:
    """The answer in the cache folder; None where there is none that can be read."""
    place = _place(key)
    try:
        content = json.loads(place.read_bytes()) if place else {}
        if content["key"] != key or content["state"] not in get_args(State):
            return None
        return SelfTest(content["state"], content["format"], content["words"], content["hint"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _keep(key: Sequence[object], result: SelfTest) -> None:
    """Keep an answer for later, in one step; where that cannot be, it is asked for again."""
    place = _place(key)
    if place is None:
        return
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}")
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps({"key": key, **asdict(result)}), "ascii")
            rename(temporary, place)
        finally:
            temporary.unlink(missing_ok=True)
