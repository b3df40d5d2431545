"""Asking llama.cpp for token ids, from the parent's side of ``llama_probe.py``."""

from __future__ import annotations

import itertools
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import ChildDied
from . import llama_probe as protocol

_MOST_IDS = 1 << 26  # of all texts
_TELLING = ("error", "GGML_ASSERT", "what():", "terminate called")


@dataclass(frozen=True)
class Request:
    """One text for llama_tokenize, with its two flags."""

    text: str
    parse_special: bool = True
    add_special: bool = False


class ProbeFailure(Exception):
    """llama.cpp refused the vocabulary or stopped at a check of its own; the message says how."""


class LlamaProbe:
    """A child process that loads a GGUF's vocabulary while the parent does something else.

    A context manager; ``encode`` can be called once. The child cannot outlive it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._child = retry_once(self._start)

    def _start(self) -> Child:
        return Child(
            "kconv.vocab.llama_probe",
            str(self._path.absolute()),
            library="llama.cpp",
        )

    def __enter__(self) -> LlamaProbe:
        return self

    def __exit__(self, *failure: object) -> None:
        self._child.close()

    def encode(self, requests: Sequence[Request]) -> list[array[int]]:
        """Token ids for every request. Raises ProbeFailure, and ChildDied, which is no verdict."""
        message = [struct.pack("<I", len(requests))]
        for request in requests:
            text = request.text.encode("utf-8", "surrogatepass")
            flags = request.add_special * protocol.ADD_SPECIAL
            flags += request.parse_special * protocol.PARSE_SPECIAL
            message.append(struct.pack("<BI", flags, len(text)))
            message.append(text)
        return retry_once(lambda: self._ask(b"".join(message), len(requests)))

    def _ask(self, message: bytes, count: int) -> list[array[int]]:
        if self._child.closed:
            self._child = self._start()
        try:
            self._child.receive(1)  # loaded
            self._child.send(message)
            sizes = struct.unpack(f"<{count}I", self._child.receive(4 * count))
            if sum(sizes) > _MOST_IDS:
                raise ProbeFailure(f"llama.cpp returned {sum(sizes)} ids for {count} texts")
            ids = self._ids(sum(sizes))
        except ChildRefused as refusal:
            raise ProbeFailure(_reason(refusal)) from refusal
        except ChildDied:
            self._child.close()
            raise
        ends = list(itertools.accumulate(sizes))
        return [ids[end - size : end] for size, end in zip(sizes, ends, strict=True)]

    def _ids(self, size: int) -> array[int]:
        ids = array("i", bytes(self._child.receive(4 * size)))
        if sys.byteorder == "big":
            ids.byteswap()
        return ids


def _reason(refusal: ChildRefused) -> str:
    if refusal.limit is not None:
        how = f"llama.cpp needs more {refusal.limit} for the vocabulary than kconv allows"
    elif refusal.code == protocol.REFUSED:
        how = "llama.cpp refused the vocabulary"
    else:
        how = "llama.cpp failed an internal check while loading the vocabulary"
    telling = [line for line in refusal.words if any(word in line for word in _TELLING)]
    return f"{how}: {' / '.join((telling or refusal.words[-1:])[-2:]) or 'no message'}"
