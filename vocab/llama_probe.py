"""The child that lets llama.cpp tokenize: run as a script, imports nothing of kconv.

A bad vocabulary may abort the process llama.cpp runs in (GGML_ASSERT, an exception through the C
interface), so it is never loaded in the parent. Called as ``python -I llama_probe.py FILE.gguf``; llama.cpp's
log goes to stderr.

Request on stdin:  uint32 count, then per text: uint8 flags (1 add_special, 2 parse_special), uint32 length,
UTF-8. Answer on stdout: uint32 1 when the vocabulary is loaded, then per text: uint32 number of tokens, int32
each. All little-endian. Exit code 3: the vocabulary was refused; others: the library died.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import sys
import types
from typing import Any

ADD_SPECIAL = 1
PARSE_SPECIAL = 2


def _library() -> Any:
    """llama-cpp-python's ctypes layer without its package, which imports numpy and more (15 ms, not 110).

    Its structures are those of the installed version, so none are repeated here.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("llama-cpp-python is not installed")
    package = types.ModuleType("llama_cpp")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["llama_cpp"] = package
    return importlib.import_module("llama_cpp.llama_cpp")


def _read(size: int) -> bytes:
    data = sys.stdin.buffer.read(size)
    if len(data) != size:
        raise SystemExit("the request ends early")
    return data


def _open(library: Any, path: str) -> Any:
    """The vocabulary of a GGUF file, or None when llama.cpp refuses it."""
    library.llama_backend_init()
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(os.fsencode(path), parameters)
    return library.llama_model_get_vocab(model) if model else None


def _no_core_dump() -> None:
    try:
        import resource
    except ImportError:  # not a Unix
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main() -> int:
    """Load the file named on the command line and answer the texts on stdin."""
    _no_core_dump()
    library = _library()
    vocab = _open(library, sys.argv[1])
    if vocab is None:
        return 3
    out = sys.stdout.buffer
    out.write(struct.pack("<I", 1))
    out.flush()
    room = 1 << 12
    buffer = (ctypes.c_int32 * room)()
    (count,) = struct.unpack("<I", _read(4))
    for _ in range(count):
        flags, length = struct.unpack("<BI", _read(5))
        text = _read(length)
        add, parse = bool(flags & ADD_SPECIAL), bool(flags & PARSE_SPECIAL)
        found = library.llama_tokenize(vocab, text, length, buffer, room, add, parse)
        if found < 0:
            room = -found
            buffer = (ctypes.c_int32 * room)()
            found = library.llama_tokenize(vocab, text, length, buffer, room, add, parse)
        out.write(struct.pack("<I", found))
        out.write(memoryview(buffer).cast("B")[: 4 * found])
    out.flush()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # freeing a vocabulary of 128,000 tokens takes longer than forgetting it
