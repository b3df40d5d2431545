"""The child that lets llama.cpp tokenize; of kconv it imports its side of a child and the processors' number.

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
import threading
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from ..core import child
from ..core.cores import available_cores

ADD_SPECIAL = 1
PARSE_SPECIAL = 2
REFUSED = 3
_TEXTS = 256  # at once
_MOST_THREADS = 8


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
    (count,) = struct.unpack("<I", child.take(4))
    every, lengths = child.take(count), struct.unpack(f"<{count}I", child.take(4 * count))
    data = child.take(sum(lengths))
    texts, end = [], 0
    for length in lengths:
        begin, end = end, end + length
        texts.append(data[begin:end])
    found = _in_threads(library, vocab, list(zip(every, texts, strict=True)))
    for counts, _ in found:
        child.write(counts)
    for _, tokens in found:
        child.write(tokens)
    child.take(1)  # until the parent is done
    return 0


def _in_threads(
    library: Any, vocab: Any, requests: Sequence[tuple[int, bytes]]
) -> list[tuple[bytes, bytearray]]:
    """What ``_tokenized`` gives for some texts after the other; nothing of a vocabulary changes meanwhile."""
    begins = range(0, len(requests), _TEXTS)
    left, found, failed = iter(begins), {}, []

    def work() -> None:
        try:
            for begin in left:
                found[begin] = _tokenized(library, vocab, requests[begin : begin + _TEXTS])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(min(available_cores(), _MOST_THREADS) - 1)]
    for thread in threads:
        thread.start()
    work()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [found[begin] for begin in begins]


def _tokenized(library: Any, vocab: Any, requests: Iterable[tuple[int, bytes]]) -> tuple[bytes, bytearray]:
    """The number of tokens of each text, and all tokens, as they are written."""
    room = 1 << 12
    buffer = (ctypes.c_int32 * room)()
    counts, tokens = array("I"), bytearray()
    for flags, text in requests:
        add, parse = bool(flags & ADD_SPECIAL), bool(flags & PARSE_SPECIAL)
        written = library.llama_tokenize(vocab, text, len(text), buffer, room, add, parse)
        if written < 0:
            room = -written
            buffer = (ctypes.c_int32 * room)()
            written = library.llama_tokenize(vocab, text, len(text), buffer, room, add, parse)
        counts.append(written)
        tokens += memoryview(buffer).cast("B")[: 4 * written]
    return struct.pack(f"<{len(counts)}I", *counts), tokens
