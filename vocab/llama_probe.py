"""The child that lets llama.cpp tokenize; imports nothing of kconv but its side of a child.

A bad vocabulary may abort the process llama.cpp runs in (GGML_ASSERT, an exception through the C
interface), so it is never loaded in the parent. Its argument is FILE.gguf; llama.cpp's log goes to stderr.

A first byte says that the file is there; it answers one byte when the vocabulary is loaded. Request: uint32
count, then of all texts: uint8 flags (1 add_special, 2 parse_special), uint32 lengths, UTF-8. Answer, when
all texts have been read: the number of tokens of each, uint32, then all tokens, int32. All little-endian.
Exit code REFUSED: the vocabulary was refused.
"""

from __future__ import annotations

import ctypes
import os
import struct
from array import array
from collections.abc import Sequence
from typing import Any

from ..core import child

ADD_SPECIAL = 1
PARSE_SPECIAL = 2
REFUSED = 3


def _open(library: Any, path: str) -> Any:
    """The vocabulary of a GGUF file. Raises Stop where llama.cpp refuses it."""
    parameters = library.llama_model_default_params()
    parameters.vocab_only = True
    model = library.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise child.Stop(REFUSED)
    return library.llama_model_get_vocab(model)


def main(arguments: Sequence[str]) -> int:
    """Load the file of the argument and answer the texts."""
    library = child.llama_cpp()
    library.llama_backend_init()
    child.take(1)
    vocab = _open(library, arguments[0])
    child.write(b"\x01")
    room = 1 << 12
    buffer = (ctypes.c_int32 * room)()
    (count,) = struct.unpack("<I", child.take(4))
    every, lengths = child.take(count), struct.unpack(f"<{count}I", child.take(4 * count))
    data = child.take(sum(lengths))
    counts, answer, end = array("I"), bytearray(), 0
    for flags, length in zip(every, lengths, strict=True):
        begin, end = end, end + length
        text = data[begin:end]
        add, parse = bool(flags & ADD_SPECIAL), bool(flags & PARSE_SPECIAL)
        written = library.llama_tokenize(vocab, text, length, buffer, room, add, parse)
        if written < 0:
            room = -written
            buffer = (ctypes.c_int32 * room)()
            written = library.llama_tokenize(vocab, text, length, buffer, room, add, parse)
        counts.append(written)
        answer += memoryview(buffer).cast("B")[: 4 * written]
    child.write(struct.pack(f"<{count}I", *counts))
    child.write(answer)
    child.take(1)  # until the parent is done
    return 0
