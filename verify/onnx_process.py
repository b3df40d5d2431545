"""A folder's models in onnxruntime, in a process of their own (``onnx_child.py``): ids in, logits out."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from . import onnx_child as protocol
from .candidate import CandidateFailure, Floats, Ids
from .onnx_folder import OnnxFolder

SCRIPT = Path(protocol.__file__)
PATIENCE = 600.0
"""Seconds without a byte from the child after which it is given up."""
_MOST_COLUMNS = 1 << 22  # tokens of a vocabulary
_SAID = 400
_ENDINGS = {
    protocol.REFUSED: "onnxruntime refuses the folder",
    protocol.NOT_COMPUTED: "onnxruntime cannot compute with this folder",
    protocol.NOT_SUPPORTED: "kconv cannot run this kind of ONNX model",
}


class OnnxProcess:
    """The models of ``folder``, loaded on the CPU; a context manager. Every method raises CandidateFailure.

    ``begin`` comes first, then ``read`` as often as wanted: each goes on after what has been read. Both take
    a text, or a batch: a matrix with a row for each text, PADDING where it has no token.
    """

    def __init__(self, folder: OnnxFolder, *, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> OnnxProcess:
        files = [self._folder.decoder, self._folder.cached, self._folder.encoder]
        paths = [str(path.absolute()) for path in files if path is not None]
        mapped = str(int(self._folder.type == "f32"))
        command = [sys.executable, "-I", str(SCRIPT), str(self._threads), mapped, *paths]
        self._log: IO[bytes] = tempfile.TemporaryFile()  # closed by __exit__
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, bufsize=0
            )
            self._take(protocol.ANSWER.size)
        except OSError as error:
            self.__exit__(None, None, None)
            raise CandidateFailure(f"cannot start a process for onnxruntime: {error}") from error
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process.wait()
            self._process = None
        self._log.close()

    def begin(self, source: Sequence[int] | Ids = ()) -> None:
        """Forget what was read; an encoder reads ``source``, decoder-only models are given none."""
        self._ask(protocol.BEGIN, source, 0)

    def read(self, ids: Sequence[int] | Ids, rows: int = 1) -> Floats:
        """The decoder reads ``ids``; logits ``(rows, vocabulary)`` after the last ``rows`` of them.

        ``(batch, rows, vocabulary)`` of a batch.
        """
        found = self._ask(protocol.READ, ids, rows)
        return found[0] if np.ndim(ids) == 1 else found

    def _ask(self, wanted: int, ids: Sequence[int] | Ids, rows: int) -> Floats:
        given = np.atleast_2d(np.array(ids, "<i8"))
        batch, length = given.shape
        message = protocol.REQUEST.pack(wanted, batch, length, rows) + given.tobytes()
        view = memoryview(message)
        pipe = self._running().stdin
        assert pipe is not None
        try:
            while view:
                view = view[pipe.write(view) or 0 :]
        except BrokenPipeError:
            raise self._failure() from None
        found, columns = protocol.ANSWER.unpack(self._take(protocol.ANSWER.size))
        if found != batch * rows or not 0 <= columns <= _MOST_COLUMNS:
            raise CandidateFailure(f"onnxruntime gave {found} × {columns} logits for {batch * rows} tokens")
        return np.frombuffer(self._take(4 * found * columns), "<f4").reshape(batch, rows, columns)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("enter the process first: with OnnxProcess(...) as process")
        return self._process

    def _take(self, count: int) -> bytearray:
        """The child's next bytes. No size in memory comes from the child unchecked."""
        pipe: Any = self._running().stdout
        data = bytearray(count)
        view = memoryview(data)
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while view:
            if not poll.poll(PATIENCE * 1000):
                raise CandidateFailure(f"onnxruntime gave no answer for {PATIENCE / 60:.0f} minutes")
            got = pipe.readinto(view)
            if not got:
                raise self._failure()
            view = view[got:]
        return data

    def _failure(self) -> CandidateFailure:
        """Why the process has ended, with its last words."""
        try:
            code = self._running().wait(10)
        except subprocess.TimeoutExpired:
            return CandidateFailure("the process that runs onnxruntime stopped answering")
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - (1 << 16), 0))
        lines = self._log.read().decode("utf-8", "replace").split("\n")
        said = " ".join("".join(c if c.isprintable() else " " for c in " ".join(lines[-4:])).split())[:_SAID]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        ending = _ENDINGS.get(code, f"the process that runs onnxruntime {how}")
        return CandidateFailure(f"{ending}: {said}" if said else ending)
