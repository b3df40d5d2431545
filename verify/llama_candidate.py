"""llama.cpp as the measured side: a child process (``llama_child.py``) reads windows with a GGUF file."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import IO, cast

import numpy as np

from ..core.errors import KconvError
from ..core.gguf_file import GgufHeader
from ..core.gguf_split import read_model
from . import llama_child as protocol
from .candidate import Block, CandidateFailure, Floats
from .windows import Window

SCRIPT = Path(protocol.__file__)
BLOCK_BYTES = 64 << 20
"""Logits sent at once. llama.cpp holds as much twice (its output buffer and the graph's), and we once."""
MAX_BATCH = 512
PATIENCE = 600.0
"""Seconds without a byte from the child after which it is given up, besides those for reading the file."""
_SLOW_DISK = 20e6  # bytes a second; a file that does not fit in memory is read again for every piece
_ENCODER = re.compile(r"enc\.blk\.(\d+)\.")
_LINE, _LOG_END = 300, 1 << 16
# where llama.cpp was built, and the functions that pass an error on
_NOISE = re.compile(r"^\S*/llama\.cpp/|^(?:\w+: |error loading model: )+")
_ENDINGS = {
    protocol.REFUSED: "llama.cpp refuses the file",
    protocol.NO_CONTEXT: "llama.cpp cannot set up a context of this size, most likely for want of memory",
    protocol.NOT_DECODED: "llama.cpp cannot read the text with this file",
    protocol.NOT_INSTALLED: "llama-cpp-python is not installed (pip install llama-cpp-python)",
    protocol.NOT_SUPPORTED: "kconv cannot measure this kind of model in llama.cpp",
}
_DEATHS = {
    "SIGABRT": "llama.cpp stopped at a check of its own",
    "SIGBUS": "the file became shorter, or its disk failed, while llama.cpp had it mapped",
    "SIGKILL": "the process that runs llama.cpp was killed, most likely for want of memory",
    "SIGILL": "llama.cpp was built for another processor",
}


class LlamaCandidate:
    """A GGUF file in llama.cpp on the CPU, in a child process; candidate.Candidate describes the methods.

    Weights stay mapped and as the file has them, the key/value cache is f32, flash attention is off.
    ``threads`` are llama.cpp's. ``batch`` is how many tokens it reads at once, by default what makes a block
    of ``BLOCK_BYTES``, at most ``MAX_BATCH``. ``front`` makes what the encoder reads of a source's ids, where
    that is not their embeddings: float32 ``(positions, hidden)``.

    Entering loads the file. One reading at a time: a failure, leaving a reading before its end or beginning
    another meanwhile ends the child, and the next reading starts a new one.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int,
        batch: int | None = None,
        front: Callable[[Sequence[int]], Floats] | None = None,
    ) -> None:
        self.path = path
        self._threads, self._batch, self._front = threads, batch, front
        self._child: _Child | None = None

    def __enter__(self) -> LlamaCandidate:
        self._child = _Child(self.path, self._threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.close()
            self._child = None

    def logits(self, windows: Sequence[Window]) -> Iterator[Block]:
        """Logits of all scored positions in order, in blocks; see candidate.Candidate.

        Raises CandidateFailure.
        """
        asked = [(index, window) for index, window in enumerate(windows) if window.scored]
        if not asked:
            return
        # a window's last token predicts none that is known
        parts = [replace(window, ids=window.ids[:-1]) for _, window in asked]
        with self._reading() as child:
            size = self._piece(child, parts)
            buffer = np.empty((size, child.vocabulary), np.float32)
            child.send(_request(protocol.LOGITS_WANTED, size, parts, self._embedded(child, parts)))
            for at, part in enumerate(parts):
                for start in range(0, len(part.ids), size):
                    stop = min(start + size, len(part.ids))
                    begin = min(max(part.scored_from, start), stop)
                    child.expect(protocol.LOGITS, at, begin, stop - begin)
                    if begin < stop:
                        child.fill(buffer[: stop - begin])
                        yield Block(asked[at][0], begin, buffer[: stop - begin])

    def layers(self, window: Window) -> list[Floats]:
        """What leaves each layer, before the last norm; see candidate.Candidate. Raises CandidateFailure."""
        parts = [replace(window, scored_from=0)]
        with self._reading() as child:
            size = self._piece(child, parts)
            encoder, embedded = child.encoder_layers, self._embedded(child, parts)
            positions = len(window.source) if embedded is None else len(embedded[0])
            lengths = [positions] * encoder + [len(window.ids)] * (child.layers - encoder)
            found: list[Floats] = [np.empty((length, child.hidden), np.float32) for length in lengths]
            child.send(_request(protocol.LAYERS_WANTED, size, parts, embedded))
            for layer, rows in enumerate(found[:encoder]):
                child.expect(protocol.LAYER, layer, 0, len(rows))
                child.fill(rows)
            for start in range(0, len(window.ids), size):
                stop = min(start + size, len(window.ids))
                for layer, rows in enumerate(found[encoder:], encoder):
                    child.expect(protocol.LAYER, layer, start, stop - start)
                    child.fill(rows[start:stop])
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[_Child]:
        """A child that waits for a request; it ends if the block does not reach its end."""
        if self._child is None:
            raise RuntimeError("enter the candidate first: with LlamaCandidate(...) as candidate")
        if self._child.busy or self._child.closed:
            self._child.close()
            self._child = _Child(self.path, self._threads)
        child = self._child
        child.busy = True
        try:
            yield child
        except BaseException:
            child.close()
            raise
        child.busy = False

    def _embedded(self, child: _Child, parts: Sequence[Window]) -> list[Floats] | None:
        """What the encoder reads of each part; None where llama.cpp embeds the ids itself."""
        if self._front is None:
            return None
        made = [self._front(part.source) for part in parts]
        if any(values.shape[1:] != (child.hidden,) for values in made):
            raise CandidateFailure(
                f"the front end gives a width of {made[0].shape[-1]}, the file's encoder takes {child.hidden}"
            )
        return made

    def _piece(self, child: _Child, parts: Sequence[Window]) -> int:
        """Tokens to read at once."""
        rows = BLOCK_BYTES // (4 * child.vocabulary)
        size = self._batch or max(min(rows // 32 * 32, MAX_BATCH), 16)
        return min(size, max(1, *(len(part.ids) for part in parts)))


def _request(
    wanted: int, size: int, parts: Sequence[Window], embedded: Sequence[Floats] | None = None
) -> bytes:
    wanted |= 0 if embedded is None else protocol.EMBEDDED
    message = [protocol.REQUEST.pack(wanted, size, len(parts))]
    for index, part in enumerate(parts):
        source = (
            np.array(part.source, "<i4") if embedded is None else embedded[index].astype("<f4", copy=False)
        )
        message += [
            protocol.WINDOW.pack(len(source), len(part.ids), part.scored_from),
            source.tobytes(),
            np.array(part.ids, "<i4").tobytes(),
        ]
    return b"".join(message)


class _Child:
    """The running process. Its answers are compared with what was asked; no size is taken from them."""

    def __init__(self, path: Path, threads: int) -> None:
        """Start and load the file. Raises CandidateFailure."""
        self.busy = self.closed = False
        try:
            self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
            self._process = subprocess.Popen(
                [sys.executable, "-I", str(SCRIPT), str(path.absolute()), str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                bufsize=0,
                env=_environment(),
            )
        except OSError as error:
            raise CandidateFailure(f"cannot start a process for llama.cpp: {error}") from error
        self._requests = cast(io.FileIO, self._process.stdin)
        self._answers = cast(io.FileIO, self._process.stdout)
        try:
            self._poll = select.poll()
            self._poll.register(self._answers, select.POLLIN)
            header = read_model(path).header
            self._patience = PATIENCE + header.size / _SLOW_DISK
            self.vocabulary, self.hidden, self.layers = self._loaded(header)
            self.encoder_layers = len(
                {found[1] for info in header.tensors if (found := _ENCODER.match(info.name))}
            )
        except KconvError as error:
            self.close()
            raise CandidateFailure(error.message) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process at once; calling it again does nothing."""
        if not self.closed:
            self.closed = True
            self._process.kill()
            self._requests.close()
            self._answers.close()
            self._process.wait()
            self._log.close()

    def send(self, request: bytes) -> None:
        """Raises CandidateFailure where the process has ended."""
        view = memoryview(request)
        try:
            while view:
                view = view[self._requests.write(view) :]
        except BrokenPipeError:
            raise self._failure() from None

    def expect(self, kind: int, *numbers: int) -> None:
        """Take the next answer's head. Raises CandidateFailure where it is another one."""
        found = self._head()
        if found != (kind, *numbers):
            raise CandidateFailure(
                f"the process that runs llama.cpp answered {found}, not {(kind, *numbers)}"
            )

    def fill(self, target: Floats) -> None:
        """Take the next bytes, as many as the array holds. Raises CandidateFailure where there are fewer."""
        self._take(target.data.cast("B"))
        if sys.byteorder == "big":
            target.byteswap(inplace=True)

    def _head(self) -> tuple[int, ...]:
        data = bytearray(protocol.ANSWER.size)
        self._take(memoryview(data))
        return protocol.ANSWER.unpack(data)

    def _take(self, view: memoryview) -> None:
        while view:
            if self.closed:
                raise CandidateFailure("llama.cpp was ended before it had answered this reading")
            if not self._poll.poll(self._patience * 1000):
                raise CandidateFailure(f"llama.cpp gave no answer for {self._patience / 60:.0f} minutes")
            count = self._answers.readinto(view)
            if not count:
                raise self._failure()
            view = view[count:]

    def _loaded(self, header: GgufHeader) -> tuple[int, int, int]:
        """Vocabulary, width and number of layers, as far as the file's header bears them out."""
        kind, vocabulary, hidden, layers = self._head()
        shape = next((info.shape for info in header.tensors if info.name == "token_embd.weight"), None)
        right = (
            shape == (vocabulary, hidden) and vocabulary * hidden > 0 and 0 < layers <= len(header.tensors)
        )
        if kind != protocol.LOADED or not right:
            raise CandidateFailure(
                f"llama.cpp finds {vocabulary} tokens, width {hidden} and {layers} layers in the file, "
                f"its header an embedding of shape {shape}"
            )
        return vocabulary, hidden, layers

    def _failure(self) -> CandidateFailure:
        """Why the process has ended, with its last words."""
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            return CandidateFailure("the process that runs llama.cpp stopped answering")
        said = _said(self._log)
        # the first error of a request names the cause, the last one a crash
        words = said[:1] if code in _ENDINGS else said[-2:]
        return CandidateFailure(": ".join([_ending(code), *([" / ".join(words)] if words else [])]))


def _ending(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"{_DEATHS.get(name, 'llama.cpp crashed')} ({name})"
    return _ENDINGS.get(code, f"the process that runs llama.cpp ended with code {code}")


def _said(log: IO[bytes]) -> list[str]:
    """Lines of the end of the log, fit for a terminal whatever the file made llama.cpp say."""
    log.seek(max(log.seek(0, os.SEEK_END) - _LOG_END, 0))
    found = []
    for line in log.read().decode("utf-8", "replace").splitlines():
        printable = "".join(c if c.isprintable() else " " for c in line)
        said = _NOISE.sub("", " ".join(printable.split()))
        found += [said[:_LINE]] if said else []
    return found


def _environment() -> dict[str, str]:
    """Ours, without switches that change llama.cpp's arithmetic; no debugger on an abort (ggml.c).

    Threads that wait sleep early, as libgomp lets them where they outnumber the processors: the child works
    beside our own arithmetic, and spinning made it three times slower there (256 tokens, 1.3 B weights: 18 s
    instead of 6 s).
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GGML_", "LLAMA_"))}
    if "LLAMA_CPP_LIB_PATH" in os.environ:  # where llama-cpp-python finds its library
        kept["LLAMA_CPP_LIB_PATH"] = os.environ["LLAMA_CPP_LIB_PATH"]
    kept.setdefault("GOMP_SPINCOUNT", "1000")
    return {**kept, "GGML_NO_BACKTRACE": "1"}
