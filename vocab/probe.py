"""Asking llama.cpp for token ids, from the parent's side of ``llama_probe.py``."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

SCRIPT = Path(__file__).with_name("llama_probe.py")
TIMEOUT = 180.0
"""Seconds for one child to load a vocabulary and encode all texts; the largest known takes three."""
_TELLING = ("error", "GGML_ASSERT", "what():", "terminate called", "not installed", "Traceback")


@dataclass(frozen=True)
class Request:
    """One text for llama_tokenize, with its two flags."""

    text: str
    parse_special: bool = True
    add_special: bool = False


class ProbeFailure(Exception):
    """llama.cpp refused the vocabulary or died of it; the message says how."""


class LlamaProbe:
    """A child process that loads a GGUF's vocabulary while the parent does something else.

    A context manager; ``encode`` can be called once. The child cannot outlive it.
    """

    def __init__(self, path: Path) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__)
        # No site hooks, no user packages; no debugger attached to an abort (ggml.c, ggml_print_backtrace).
        self._child = subprocess.Popen(
            [sys.executable, "-I", str(SCRIPT), str(path.absolute())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )

    def __enter__(self) -> LlamaProbe:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._child.poll() is None:
            self._child.kill()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()
        self._child.wait()
        self._log.close()

    def encode(self, requests: Sequence[Request]) -> list[array[int]]:
        """Token ids for every request; raises ProbeFailure."""
        message = [struct.pack("<I", len(requests))]
        for request in requests:
            text = request.text.encode("utf-8", "surrogatepass")
            message.append(struct.pack("<BI", request.add_special + 2 * request.parse_special, len(text)))
            message.append(text)
        try:
            answer, _ = self._child.communicate(b"".join(message), timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise ProbeFailure(f"llama.cpp gave no answer within {TIMEOUT:.0f} s") from None
        if self._child.returncode != 0:
            raise ProbeFailure(f"{_ending(self._child.returncode)}: {self._last_words()}")
        return _answers(answer, len(requests))

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = [line.strip() for line in self._log.read().decode("utf-8", "replace").splitlines()]
        lines = [line for line in lines if line]
        telling = [line for line in lines if any(word in line for word in _TELLING)]
        return " / ".join(line[:300] for line in (telling or lines[-1:])[-2:]) or "it said nothing"


def _ending(code: int) -> str:
    if code == 3:
        return "llama.cpp refused the vocabulary"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"llama.cpp died of the vocabulary ({name})"
    return f"the process that runs llama.cpp ended with code {code}"


def _answers(data: bytes, count: int) -> list[array[int]]:
    found: list[array[int]] = []
    position = 4
    for _ in range(count):
        if position + 4 > len(data):
            raise ProbeFailure(f"llama.cpp answered {len(found)} of {count} texts")
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        ids = array("i", data[position : position + 4 * size])
        if sys.byteorder == "big":
            ids.byteswap()
        found.append(ids)
        position += 4 * size
    return found
