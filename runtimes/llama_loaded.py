"""A GGUF file in its child (``llama_child.py``): loading it, and answers compared with what was asked."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ..core.children import Child, ChildRefused
from ..core.errors import InputError
from ..core.gguf_file import GgufHeader
from ..core.gguf_split import read_model
from . import llama_child as protocol
from .llama_errors import reason_of
from .llama_requests import first_context
from .matrix_inputs import MatrixInput, read_inputs
from .reader import Floats, RuntimeFailure

MODULE = "kconv.runtimes.llama_child"
PATIENCE = 600.0
"""Seconds without a byte from the child after which it is given up, besides those for reading the file."""
_SLOW_DISK = 20e6  # bytes a second; a file that does not fit in memory is read again for every piece
_ENCODER = re.compile(r"enc\.blk\.(\d+)\.")


class Loaded:
    """A file in its child. Answers are compared with what was asked; no size is taken from them."""

    def __init__(self, path: Path, threads: int, born: Callable[[Loaded], None]) -> None:
        """Start and load the file; ``born`` is told in between. Raises RuntimeFailure, ChildDied."""
        self.busy = False
        self._child = Child(
            MODULE,
            str(path.absolute()),
            str(threads),
            library="llama.cpp",
            environment=_environment(),
            patience=PATIENCE,
        )
        try:
            born(self)
            header = read_model(path).header
            self._child.patience += header.size / _SLOW_DISK
            self.vocabulary, self.hidden, self.layers = self._shape(header)
            self.first_context = first_context(header.metadata)
            self.encoder_layers = len(
                {match[1] for info in header.tensors if (match := _ENCODER.match(info.name))}
            )
        except InputError as error:
            self.close()
            raise RuntimeFailure(error.message) from error
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the child was ended."""
        return self._child.closed

    @property
    def pid(self) -> int:
        """The number of the child's process."""
        return self._child.pid

    def close(self) -> None:
        """End the child at once; calling it again does nothing."""
        self._child.close()

    def kill(self) -> None:
        """End the process; whoever waits for it in another thread is told that it died, and closes."""
        self._child.kill()

    def send(self, request: bytes) -> None:
        """Raises RuntimeFailure, ChildDied where the child has ended."""
        try:
            self._child.send(request)
        except ChildRefused as refusal:
            raise RuntimeFailure(reason_of(refusal)) from refusal

    def expect(self, kind: int, *numbers: int) -> None:
        """Take the next answer's head. Raises RuntimeFailure where it is another one, ChildDied."""
        head = self.head()
        if head != (kind, *numbers):
            raise RuntimeFailure(f"the process that runs llama.cpp answered {head}, not {(kind, *numbers)}")

    def inputs(self) -> dict[str, MatrixInput]:
        """The inputs of what was decoded at once. Raises RuntimeFailure, ChildDied."""
        return read_inputs(self._take)

    def fill(self, target: Floats) -> None:
        """Take the next bytes, as many as the array holds. Raises RuntimeFailure, ChildDied."""
        self._take(target.data)
        if sys.byteorder == "big":
            target.byteswap(inplace=True)

    def head(self) -> tuple[int, ...]:
        """The next answer's head: kind and three numbers. Raises RuntimeFailure, ChildDied."""
        data = bytearray(protocol.ANSWER.size)
        self._take(memoryview(data))
        return protocol.ANSWER.unpack(data)

    def _take(self, target: memoryview) -> None:
        if self._child.closed:
            raise RuntimeError("this reading was ended because another one was started")
        try:
            self._child.fill(target)
        except ChildRefused as refusal:
            raise RuntimeFailure(reason_of(refusal)) from refusal

    def _shape(self, header: GgufHeader) -> tuple[int, int, int]:
        """Vocabulary, width and number of layers, as far as the file's header bears them out."""
        kind, vocabulary, hidden, layers = self.head()
        shape = next((info.shape for info in header.tensors if info.name == "token_embd.weight"), None)
        right = (
            shape == (vocabulary, hidden) and vocabulary * hidden > 0 and 0 < layers <= len(header.tensors)
        )
        if kind != protocol.LOADED or not right:
            raise RuntimeFailure(
                f"llama.cpp finds {vocabulary} tokens, width {hidden} and {layers} layers in the "
                f"file, but its header has an embedding of shape {shape}"
            )
        return vocabulary, hidden, layers


def _environment() -> dict[str, str]:
    """Ours, without switches that change llama.cpp's arithmetic.

    Threads that wait sleep early, as libgomp lets them where they outnumber the processors: the child works
    beside our own arithmetic, and spinning made it three times slower there (256 tokens, 1.3 B weights: 18 s
    instead of 6 s).
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GGML_", "LLAMA_"))}
    if "LLAMA_CPP_LIB_PATH" in os.environ:  # where llama-cpp-python finds its library
        kept["LLAMA_CPP_LIB_PATH"] = os.environ["LLAMA_CPP_LIB_PATH"]
    kept.setdefault("GOMP_SPINCOUNT", "1000")
    return kept
