"""llama.cpp as the measured side: a child (``llama_child.py``) reads windows with a GGUF file."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import ChildDied, InputError
from ..core.gguf_file import GgufHeader
from ..core.gguf_split import read_model
from ..core.windows import Window
from . import llama_child as protocol
from .llama_errors import reason_of
from .llama_requests import answers, first_context, runs
from .matrix_inputs import MatrixInput, joined, read_inputs
from .reader import Block, Floats, RuntimeFailure

MODULE = "kconv.runtimes.llama_child"
BLOCK_BYTES = 64 << 20
"""Logits sent at once. llama.cpp holds as much twice (its output buffer and the graph's), and we once."""
MAX_BATCH = 512
PATIENCE = 600.0
"""Seconds without a byte from the child after which it is given up, besides those for reading the file."""
_SLOW_DISK = 20e6  # bytes a second; a file that does not fit in memory is read again for every piece
_ENCODER = re.compile(r"enc\.blk\.(\d+)\.")


class LlamaReader:
    """A GGUF file in llama.cpp on the CPU, in a child process; candidate.Candidate describes the methods.

    Weights stay mapped and as the file has them, the key/value cache is f32, flash attention is off.
    ``threads`` are llama.cpp's. ``batch`` is how many tokens it reads at once, by default what makes a block
    of ``BLOCK_BYTES``, at most ``MAX_BATCH``. ``front`` makes what the encoder reads of a source's ids, where
    that is not their embeddings: float32 ``(positions, hidden)``.

    Entering loads the file. One reading at a time: a failure, leaving a reading before its end or beginning
    another meanwhile ends the child, and the next reading starts a new one. A reading whose child dies goes
    on in a new one, once, behind what was given already; ChildDied is raised where that dies, too.
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
        self._loaded: _Loaded | None = None

    def __enter__(self) -> Self:
        self._loaded = retry_once(lambda: _Loaded(self.path, self._threads))
        return self

    def __exit__(self, *failure: object) -> None:
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def logits(self, windows: Sequence[Window]) -> Iterator[Block]:
        """Logits of all scored positions in order, in blocks; see candidate.Candidate.

        Raises RuntimeFailure, and ChildDied, which is no verdict.
        """
        asked = [(index, window) for index, window in enumerate(windows) if window.scored]
        if not asked:
            return
        # a window's last token predicts none that is known
        parts = [replace(window, ids=window.ids[:-1]) for _, window in asked]
        given = (0, 0)  # the part, and its position, before which everything was given
        for last in (False, True):
            try:
                for at, start, rows in self._rows(parts, given):
                    yield Block(asked[at][0], start, rows)
                    given = at, start + len(rows)
                return
            except ChildDied:
                if last:
                    raise

    def _rows(self, parts: Sequence[Window], given: tuple[int, int]) -> Iterator[tuple[int, int, Floats]]:
        """Part, first position and logits, in blocks, from ``given`` on; its part is read from the start."""
        first, reached = given
        with self.reading() as loaded:
            size = self._piece(loaded, parts)  # of all parts, so that blocks begin where they did before
            rest = parts[first:]
            buffer = np.empty((size, loaded.vocabulary), np.float32)
            for behind, run in runs(rest, loaded.first_context):
                loaded.send(request(protocol.LOGITS_WANTED, size, run, self._embedded(loaded, run)))
                for at, begin, stop in answers(run, size):
                    loaded.expect(protocol.LOGITS, at, begin, stop - begin)
                    if begin < stop:
                        loaded.fill(buffer[: stop - begin])
                        if behind + at or begin >= reached:
                            yield first + behind + at, begin, buffer[: stop - begin]

    def layers(self, window: Window) -> list[Floats]:
        """What leaves each layer, before the last norm; see candidate.Candidate.

        Raises RuntimeFailure, and ChildDied, which is no verdict.
        """
        return retry_once(lambda: self._layers(window))

    def _layers(self, window: Window) -> list[Floats]:
        parts = [replace(window, scored_from=0)]
        with self.reading() as loaded:
            size = self._piece(loaded, parts)
            encoder, embedded = loaded.encoder_layers, self._embedded(loaded, parts)
            positions = len(window.source) if embedded is None else len(embedded[0])
            lengths = [positions] * encoder + [len(window.ids)] * (loaded.layers - encoder)
            outputs: list[Floats] = [np.empty((length, loaded.hidden), np.float32) for length in lengths]
            loaded.send(request(protocol.LAYERS_WANTED, size, parts, embedded))
            for layer, rows in enumerate(outputs[:encoder]):
                loaded.expect(protocol.LAYER, layer, 0, len(rows))
                loaded.fill(rows)
            for start in range(0, len(window.ids), size):
                stop = min(start + size, len(window.ids))
                for layer, rows in enumerate(outputs[encoder:], encoder):
                    loaded.expect(protocol.LAYER, layer, start, stop - start)
                    loaded.fill(rows[start:stop])
        return outputs

    def matrix_inputs(self, window: Window) -> tuple[dict[str, MatrixInput], Floats]:
        """What each matrix of the file is multiplied by, by its name, and the logits of all positions.

        Raises RuntimeFailure, and ChildDied, which is no verdict.
        """
        return retry_once(lambda: self._matrix_inputs(replace(window, scored_from=0)))

    def _matrix_inputs(self, window: Window) -> tuple[dict[str, MatrixInput], Floats]:
        with self.reading() as loaded:
            size = self._piece(loaded, [window])
            wanted = protocol.INPUTS_WANTED | protocol.LOGITS_WANTED
            loaded.send(request(wanted, size, [window], self._embedded(loaded, [window])))
            pieces = [loaded.inputs()] if loaded.encoder_layers else []
            logits = np.empty((len(window.ids), loaded.vocabulary), np.float32)
            for start in range(0, len(window.ids), size):
                stop = min(start + size, len(window.ids))
                pieces.append(loaded.inputs())
                loaded.expect(protocol.LOGITS, 0, start, stop - start)
                loaded.fill(logits[start:stop])
        return joined(pieces), logits

    @contextlib.contextmanager
    def reading(self) -> Iterator[_Loaded]:
        """A file that waits for a request; its child ends if the block does not reach its end."""
        if self._loaded is None:
            raise RuntimeError("enter the reader first: with LlamaReader(...) as reader")
        if self._loaded.busy or self._loaded.closed:
            self._loaded.close()
            self._loaded = _Loaded(self.path, self._threads)
        loaded = self._loaded
        loaded.busy = True
        try:
            yield loaded
        except BaseException:
            loaded.close()
            raise
        loaded.busy = False

    def _embedded(self, loaded: _Loaded, parts: Sequence[Window]) -> list[Floats] | None:
        """What the encoder reads of each part; None where llama.cpp embeds the ids itself."""
        if self._front is None:
            return None
        made = [self._front(part.source) for part in parts]
        if any(values.shape[1:] != (loaded.hidden,) for values in made):
            width = made[0].shape[-1]
            raise RuntimeFailure(
                f"the front end gives a width of {width}, but the file's encoder expects {loaded.hidden}"
            )
        return made

    def _piece(self, loaded: _Loaded, parts: Sequence[Window]) -> int:
        """Tokens to read at once."""
        rows = BLOCK_BYTES // (4 * loaded.vocabulary)
        size = self._batch or max(min(rows // 32 * 32, MAX_BATCH), 16)
        return min(size, max(1, *(len(part.ids) for part in parts)))


def request(
    wanted: int, size: int, parts: Sequence[Window], embedded: Sequence[Floats] | None = None
) -> bytes:
    """What the child is asked (llama_child.py): of these windows, ``size`` tokens decoded at once."""
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


class _Loaded:
    """A file in its child. Answers are compared with what was asked; no size is taken from them."""

    def __init__(self, path: Path, threads: int) -> None:
        """Start and load the file. Raises RuntimeFailure, ChildDied."""
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
