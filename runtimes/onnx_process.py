"""A folder's models in onnxruntime, in a process of their own (``onnx_child.py``): ids in, logits out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import ChildDied
from . import onnx_child as protocol
from .matrix_inputs import MatrixInput
from .onnx_folder import OnnxFolder
from .onnx_gathered import gathered
from .onnx_limits import limits_of
from .onnx_model_file import INSTALL
from .onnx_taps import WHOLE
from .reader import Floats, Ids, RuntimeFailure

MODULE = "kconv.runtimes.onnx_child"
PATIENCE = 600.0
"""Seconds without a byte from the child after which it is given up, besides those that reading may take."""
_MOST_PATIENCE = 24 * 3600.0
_MOST_COLUMNS = 1 << 22  # tokens of a vocabulary
_SAID = 400
_ENDINGS: dict[int | None, str] = {
    protocol.REFUSED: "onnxruntime refuses the folder",
    protocol.NOT_COMPUTED: "onnxruntime cannot compute with this folder",
    protocol.NOT_SUPPORTED: "kconv cannot run this kind of ONNX model",
}


class OnnxProcess:
    """The models of ``folder``, loaded on the CPU; a context manager.

    ``begin`` comes first, then ``read`` as often as wanted: each goes on after what has been read. Both take
    a text, or a batch: a matrix with a row for each text, PADDING where it has no token.

    Every method raises RuntimeFailure, also where a graph takes more time or memory than it may
    (onnx_limits.py), after which the next ``begin`` starts anew; and ChildDied, which says nothing about the
    folder. A child that dies is replaced, once between two ``begin``, and reads again what was read.

    Where it is ``tapped``, ``inputs`` gives what flowed into the matrices.
    """

    def __init__(self, folder: OnnxFolder, *, threads: int, tapped: bool = False) -> None:
        self._tapped = tapped
        self._folder, self._threads = folder, threads
        self._limits = limits_of(folder, threads)
        self._places: dict[Path, Path] = {}
        self._left = contextlib.ExitStack()
        self._child: Child | None = None
        self._read: list[tuple[int, Ids]] = []  # requests since the last ``begin``
        self._replaced = False

    def __enter__(self) -> OnnxProcess:
        with contextlib.ExitStack() as stack:
            self._places = stack.enter_context(gathered(self._folder))
            self._child = retry_once(self._start)
            self._left = stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None
        self._left.close()

    def begin(self, source: Sequence[int] | Ids = ()) -> None:
        """Forget what was read; an encoder reads ``source``, decoder-only models are given none."""
        self._read, self._replaced = [], False
        self._ask(protocol.BEGIN, source, 0)

    def read(self, ids: Sequence[int] | Ids, rows: int = 1) -> Floats:
        """The decoder reads ``ids``; logits ``(rows, vocabulary)`` after the last ``rows`` of them.

        ``(batch, rows, vocabulary)`` of a batch.
        """
        logits = self._ask(protocol.READ, ids, rows)
        return logits[0] if np.ndim(ids) == 1 else logits

    def embed(self, ids: Sequence[int] | Ids, padding: int = 0) -> tuple[Floats, Floats | None]:
        """Hidden states ``(batch, length, hidden)`` and embeddings ``(batch, width)`` of an encoder.

        None for the latter where the graph makes none. ``padding`` is the id a graph is given for PADDING.
        """
        given = np.atleast_2d(np.array(ids, "<i8"))
        states, embeddings = retry_once(lambda: self._embedded(given, padding))
        width = states.shape[1] if states.size else 0
        return states.reshape(*given.shape, width), embeddings if len(embeddings) else None

    def _embedded(self, given: Ids, padding: int) -> list[Floats]:
        batch, length = given.shape
        found = []
        seconds = self._limits.request(given.size)
        with self._answering(f"reading {given.size} tokens", seconds) as child:
            request = protocol.REQUEST.pack(protocol.EMBED, batch, length, padding, seconds)
            child.send(request + given.tobytes())
            for most in (given.size, batch):
                count, columns = protocol.ANSWER.unpack(child.receive(protocol.ANSWER.size))
                if count not in (0, most) or not 0 <= columns <= _MOST_COLUMNS:
                    problem = f"{count} × {columns} numbers for {given.size} tokens"
                    raise RuntimeFailure(f"onnxruntime gave {problem}")
                found.append(np.frombuffer(child.receive(4 * count * columns), "<f4").reshape(count, columns))
        return found

    @contextlib.contextmanager
    def _answering(self, doing: str, seconds: float) -> Iterator[Child]:
        """The child, given so much time; it ends where the block does not reach its end."""
        child = self._running()
        child.patience = PATIENCE + min(seconds, _MOST_PATIENCE)
        try:
            yield child
        except ChildRefused as refusal:
            child.close()
            self._read = []
            raise self._failure(refusal, doing, seconds) from refusal
        except BaseException:
            child.close()
            raise

    def inputs(self) -> dict[tuple[str, str], tuple[MatrixInput, int]]:
        """By graph and matrix, what each was multiplied by since ``begin``, and the level (onnx_taps.Tap)."""
        child, found = self._running(), {}
        child.send(protocol.REQUEST.pack(protocol.INPUTS, 0, 0, 0, 0))
        count, _ = protocol.ANSWER.unpack(child.receive(protocol.ANSWER.size))
        for _ in range(count):
            length, level, rows, columns = protocol.INPUT.unpack(child.receive(protocol.INPUT.size))
            name = child.receive(length).decode("utf-8", "replace")
            data = child.receive(4 * rows * columns) if rows else b""
            values = np.frombuffer(data, "<f4").reshape(rows, columns)
            rounded = None
            if level & WHOLE:
                data = child.receive(4 * rows * columns) if rows else b""
                rounded = np.frombuffer(data, "<f4").reshape(rows, columns)
            graph, _, matrix = name.partition("/")
            found[graph, matrix] = (MatrixInput(values, rounded=rounded), level)
        return found

    def _start(self) -> Child:
        """A child that has loaded the models. Raises RuntimeFailure, ChildDied."""
        files = [self._folder.decoder, self._folder.cached, self._folder.encoder]
        mapped, limits = int(self._folder.mostly_f32), self._limits
        numbers = map(str, (self._threads, mapped, int(self._tapped), limits.loading, limits.memory))
        child = Child(
            MODULE,
            *numbers,
            *(str(self._places[path].absolute()) for path in files if path is not None),
            library="onnxruntime",
            install=INSTALL,
            # numpy multiplies nothing there; and no model may choose how it is run
            environment={**os.environ, "OPENBLAS_NUM_THREADS": "1", "ORT_LOAD_CONFIG_FROM_MODEL": "0"},
            patience=PATIENCE + min(limits.loading, _MOST_PATIENCE),
        )
        try:
            child.receive(protocol.ANSWER.size)
        except ChildRefused as refusal:
            child.close()
            raise self._failure(refusal, "loading the folder", limits.loading) from refusal
        except BaseException:
            child.close()
            raise
        return child

    def _ask(self, wanted: int, ids: Sequence[int] | Ids, rows: int) -> Floats:
        given = np.atleast_2d(np.array(ids, "<i8"))
        if wanted == protocol.READ and not self._read:
            raise RuntimeError("start the process first: it does not continue after a failure")
        try:
            logits = self._asked(wanted, given, rows)
        except ChildDied:
            before, self._read = self._read, []
            if self._replaced:
                raise
            self._replaced = True
            for request in before:
                self._asked(*request, 0)
            self._read = before
            logits = self._asked(wanted, given, rows)
        self._read.append((wanted, given))
        return logits

    def _asked(self, wanted: int, given: Ids, rows: int) -> Floats:
        (batch, length), tokens = given.shape, sum(each.size for _, each in self._read) + given.size
        seconds = self._limits.request(tokens)
        with self._answering(f"reading {tokens} tokens", seconds) as child:
            child.send(protocol.REQUEST.pack(wanted, batch, length, rows, seconds) + given.tobytes())
            count, columns = protocol.ANSWER.unpack(child.receive(protocol.ANSWER.size))
            if count != batch * rows or not 0 <= columns <= _MOST_COLUMNS:
                problem = f"{count} × {columns} logits for {batch * rows} tokens"
                raise RuntimeFailure(f"onnxruntime gave {problem}")
            logits = child.receive(4 * count * columns)
        return np.frombuffer(logits, "<f4").reshape(batch, rows, columns)

    def _running(self) -> Child:
        if self._child is None:
            raise RuntimeError("enter the process first: with OnnxProcess(...) as process")
        if self._child.closed:
            self._child = self._start()
        return self._child

    def _failure(self, refusal: ChildRefused, doing: str, seconds: float) -> RuntimeFailure:
        """What the child's end says of the folder, with its last words."""
        if refusal.limit is not None:
            took = f"{seconds:.0f} s of processor time"
            if refusal.limit == "memory":
                took = f"{self._limits.memory / 2**30:.1f} GiB of memory"
            return RuntimeFailure(f"{doing} takes more than {took}, kconv's limit for files of this size")
        reason = " ".join(refusal.words[-4:])[:_SAID]
        ending = _ENDINGS.get(refusal.code, "onnxruntime failed an internal check")
        return RuntimeFailure(f"{ending}: {reason}" if reason else ending)
