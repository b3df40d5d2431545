"""llama.cpp's samplers over the logits of another runtime, in a process of their own."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import ChildDied
from . import llama_sampling as protocol
from .sampling import Sampling


class Sampler:
    """Chooses the next token as llama.cpp would; a context manager.

    ``size`` is the number of tokens, ``before`` those that stand before, which a penalty looks back at. The
    same logits and the same seed give the token llama.cpp would take. A process that dies before its first
    token is started once more; later its state would be lost, and ChildDied is raised.
    """

    def __init__(self, size: int, sampling: Sampling, before: Sequence[int]) -> None:
        self._start = protocol.START.pack(size, len(before)) + sampling.packed()
        self._start += struct.pack(f"<{len(before)}i", *before)
        self._child: Child | None = None
        self._chosen = 0

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()

    def choose(self, logits: Any) -> int:
        """The next token; ``logits`` is a float32 vector of the vocabulary's size. Raises ChildDied."""
        data = logits.astype("<f4", order="C", copy=False).tobytes()
        token = self._ask(data) if self._chosen else retry_once(lambda: self._ask(data))
        self._chosen += 1
        return token

    def _ask(self, data: bytes) -> int:
        try:
            if self._child is None:
                self._child = Child("kconv.runtimes.llama_sampling", library="llama.cpp")
                self._child.receive(1)
                self._child.send(self._start)
            self._child.send(data)
            (token,) = struct.unpack("<i", self._child.receive(4))
        except ChildRefused as refusal:  # it is given no file: nothing of the input can be at fault
            self._close()
            raise ChildDied(f"llama.cpp's samplers failed: {' / '.join(refusal.words[-1:])}") from refusal
        except ChildDied:
            self._close()
            raise
        return int(token)

    def _close(self) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
