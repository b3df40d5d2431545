"""Asking llama.cpp for token ids, from the parent's side of ``llama_probe.py``."""

from __future__ import annotations

import contextlib
import itertools
import struct
import sys
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import ChildDied
from . import llama_probe as protocol

_MOST_IDS = 1 << 26  # of all texts
_TELLING = ("error", "GGML_ASSERT", "what():", "terminate called")


class Request(NamedTuple):
    """One text for llama_tokenize, with its two flags."""

    text: str
    parse_special: bool = True
    add_special: bool = False


class ProbeFailure(Exception):
    """llama.cpp refused the vocabulary or stopped at a check of its own; the message says how."""


class LlamaProbe:
    """A child process that loads a GGUF's vocabulary while the parent does something else.

    A context manager; ``encode`` can be called once. The child cannot outlive it. The file may be written
    while the child loads llama.cpp; ``load`` says that it is there. What ``encode`` is going to ask may be
    sent before (``ahead``), for llama.cpp to answer meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sent = b""
        self._child = retry_once(self._start)

    def _start(self) -> Child:
        self._loads = False
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
        message = _written(requests)
        if self._sent not in (b"", message):
            self._child.close()  # what it is answering nobody asks any more
        return retry_once(lambda: self._ask(message, len(requests)))

    def load(self) -> None:
        """Let it load the file."""
        with contextlib.suppress(ChildRefused, ChildDied):  # as ``encode`` will find
            self._load()

    def ahead(self, requests: Sequence[Request]) -> None:
        """Ask for what ``encode`` is going to ask for."""
        self._sent = _written(requests)
        with contextlib.suppress(ChildRefused, ChildDied):  # as ``encode`` will find
            self._load()
            self._child.send(self._sent)

    def _load(self) -> None:
        if not self._loads:
            self._loads = True
            self._child.send(b"\x01")

    def _ask(self, message: bytes, count: int) -> list[array[int]]:
        if self._child.closed:
            self._sent = b""
            self._child = self._start()
        try:
            self._load()
            self._child.receive(1)  # loaded
            if self._sent != message:
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


def _written(requests: Sequence[Request]) -> bytes:
    texts = [text.encode("utf-8", "surrogatepass") for text, _, _ in requests]
    flags = bytes(
        add_special * protocol.ADD_SPECIAL + parse_special * protocol.PARSE_SPECIAL
        for _, parse_special, add_special in requests
    )
    sizes = struct.pack(f"<{len(texts) + 1}I", len(texts), *map(len, texts))
    return b"".join([sizes[:4], flags, sizes[4:], *texts])


def _reason(refusal: ChildRefused) -> str:
    if refusal.limit is not None:
        how = f"llama.cpp needs more {refusal.limit} for the vocabulary than kconv allows"
    elif refusal.code == protocol.REFUSED:
        how = "llama.cpp refused the vocabulary"
    else:
        how = "llama.cpp failed an internal check while loading the vocabulary"
    said = [line for line in refusal.words if "called recursively" not in line]  # by a second thread
    telling = [line for line in said if any(word in line for word in _TELLING)]
    return f"{how}: {' / '.join((telling or refusal.words[-1:])[-2:]) or 'no message'}"
