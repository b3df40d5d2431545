"""The side of a child process: how it starts, what it is given and what it may use.

``core/children.py`` starts every child as ``python -I core/child.py MODULE ARGUMENTS``. The module is found
in this very tree, whatever kconv may be installed, and imports the standard library, what of kconv needs no
more, and the one library it is there for; it has a function ``main(arguments) -> int``.

Standard output belongs to the answers (``write``), so what a library prints goes to standard error, a file
of the parent's. Standard input belongs to the requests (``take``); when it ends, the parent is gone or done,
and the child ends, too, whatever it is computing. Limits that kconv sets for a text, a template or a graph
are told apart from those of the machine: time ends the process in a way of its own (``limit_time``), and a
line in the log says whether the limit of memory in force was ours (``OWN_MEMORY_LIMIT``).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import queue
import sys
import threading
import types
from collections.abc import Callable, Sequence
from typing import Any

OWN_MEMORY_LIMIT = b"kconv: the limit of memory is kconv's own"
"""A line of the log once ``limit_memory`` holds."""
MACHINES_MEMORY_LIMIT = b"kconv: the limit of memory is the machine's"
"""A line of the log where it no longer does."""
OUT_OF_MEMORY = 64
NOT_INSTALLED = 65
BUG = 70
PATH_VARIABLE = "KCONV_CHILD_PATH"
_RESERVED = 1 << 30  # addresses threads reserve and never fill

_LOG_ERROR, _LOG_CONTINUED = 4, 5  # ggml.h, enum ggml_log_level

_kept: list[Any] = []  # callbacks, to which llama.cpp keeps pointers
_out = 1
_incoming: queue.SimpleQueue[bytes] = queue.SimpleQueue()
_held = bytearray()
_memory_found: tuple[int | None] | None = None
"""The limit of the address space that held before ours, None where there was none."""


class Stop(Exception):
    """Ends the process with an exit code, after a line on standard error."""

    def __init__(self, code: int, line: str = "") -> None:
        super().__init__(line)
        self.code, self.line = code, line


def take(size: int) -> bytes:
    """The next ``size`` bytes of the parent's requests."""
    while len(_held) < size:
        _held.extend(_incoming.get())
    data = bytes(_held[:size])
    del _held[:size]
    return data


def waiting() -> bool:
    """Whether the parent has sent something that was not taken yet."""
    return bool(_held) or not _incoming.empty()


def write(data: Any) -> None:
    """Answer: bytes, or anything with a buffer of them."""
    view = memoryview(data)
    if not view.nbytes:  # which cannot be cast where it has several dimensions
        return
    view = view.cast("B")
    while view:
        view = view[os.write(_out, view) :]


def limit_time(seconds: float) -> None:
    """End this process after so many seconds of its processor time from now; 0 ends the limit.

    All threads count. The parent takes such an end for a finding about the input.
    """
    from . import system_processes as system

    system.limit_time(seconds)


def limit_memory(size: int) -> bool:
    """Let the address space grow by ``size`` bytes at most; whether it is kconv then that sets the limit.

    It is not where a lower one is in force, or where the machine has less: running out of memory then says
    nothing about the input. It may be called again for the next input.
    """
    global _memory_found
    from . import system_processes as system

    try:
        used = system.used_addresses()
        again = _memory_found is not None
        limit = system.address_space() if _memory_found is None else _memory_found[0]
        own = size <= _memory_of_the_machine() and (limit is None or used + size < limit)
        system.limit_address_space(used + size if own else limit)
        _memory_found = (limit,)
    except (OSError, ValueError, LookupError):  # not Linux: the limits of time remain
        return False
    if own or again:
        os.write(2, (OWN_MEMORY_LIMIT if own else MACHINES_MEMORY_LIMIT) + b"\n")
    return own


def _meminfo() -> dict[str, int]:
    """What Linux says of the machine's memory, in bytes."""
    with open("/proc/meminfo", encoding="ascii") as meminfo:
        lines = [line.partition(":") for line in meminfo]
    return {name: 1024 * int(rest.split()[0]) for name, _, rest in lines}


def _memory_of_the_machine() -> int:
    """Bytes it may give out, swap and all; where it promises no more than it has, those not promised yet."""
    meminfo = _meminfo()
    with open("/proc/sys/vm/overcommit_memory", encoding="ascii") as policy:
        if policy.read().strip() == "2":
            return meminfo["CommitLimit"] - meminfo["Committed_AS"]
    return meminfo["MemTotal"] + meminfo["SwapTotal"]


def limit_to_free_memory() -> None:
    """Let the address space grow by little more than what the machine has free.

    What asks for more is refused at once, instead of filling the memory until the kernel ends some process.
    That says nothing about the input, unlike the limit of ``limit_memory``.
    """
    from . import system_processes as system

    try:
        meminfo = _meminfo()
        free = meminfo.get("MemAvailable", 0) + meminfo.get("SwapFree", 0)
        limit = system.address_space()
        most = system.used_addresses() + free + _RESERVED
        if free and (limit is None or most < limit):
            system.limit_address_space(most)
    except (OSError, ValueError, LookupError):  # not Linux
        return


def llama_cpp() -> Any:
    """llama-cpp-python's ctypes layer without its package, which imports numpy and more (15 ms, not 110).

    Its structures are those of the installed version, so none are repeated here. Raises Stop.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise Stop(NOT_INSTALLED, "llama-cpp-python is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def log_errors(library: Any, also: Callable[[bytes], None] | None = None) -> None:
    """Of llama.cpp's log only errors reach standard error; ``also`` is given all of it."""
    import ctypes

    last = 0

    def on_log(level: int, text: bytes, _: Any) -> None:
        nonlocal last
        last = last if level == _LOG_CONTINUED else level
        if also is not None:
            also(text)
        if last == _LOG_ERROR:
            os.write(2, text)

    _kept.append(library.llama_log_callback(on_log))
    library.llama_log_set(_kept[-1], ctypes.c_void_p(0))


def _read_requests() -> None:
    while data := os.read(0, 1 << 16):
        _incoming.put(data)
    os._exit(0)


def _prepare() -> None:
    global _out, __package__
    _out = os.dup(1)
    os.dup2(2, 1)
    own = set(sys.path)
    more = os.environ.pop(PATH_VARIABLE, "").split(os.pathsep)
    sys.path += [path for path in more if path and path not in own]
    package = types.ModuleType("kconv")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    sys.modules["kconv"] = package
    sys.modules["kconv.core.child"] = sys.modules["__main__"]
    __package__ = "kconv.core"  # for the relative imports below and above
    from .system_processes import prepare_child

    prepare_child()
    threading.Thread(target=_read_requests, daemon=True).start()


def _run(module: str, arguments: Sequence[str]) -> int:
    try:
        code: int = importlib.import_module(module).main(arguments)
    except Stop as stop:
        os.write(2, f"{stop.line}\n".encode("utf-8", "backslashreplace"))
        return stop.code
    except MemoryError:
        os.write(2, b"out of memory\n")
        return OUT_OF_MEMORY
    except ModuleNotFoundError as error:
        os.write(2, f"{error}\n".encode())
        return NOT_INSTALLED
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        return BUG
    return code


if __name__ == "__main__":
    _prepare()
    code = _run(sys.argv[1], sys.argv[2:])
    os._exit(code)  # nothing is worth freeing, and other threads may be at work
