"""llama.cpp as the measured side: a child (``llama_child.py``) reads windows with a GGUF file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np

from ..core.children import retry_once
from ..core.errors import ChildDied
from ..core.windows import Window
from . import llama_child as protocol
from .llama_loaded import Loaded
from .llama_requests import answers, runs
from .matrix_inputs import MatrixInput, joined
from .reader import Block, Floats, RuntimeFailure

BLOCK_BYTES = 64 << 20
"""Logits sent at once. llama.cpp holds as much twice (its output buffer and the graph's), and we once."""
MAX_BATCH = 512


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
        self._loaded: Loaded | None = None

    def __enter__(self) -> Self:
        self._loaded = retry_once(self._load)
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

    def inputs_and_logits(
        self, window: Window, head: int
    ) -> tuple[tuple[dict[str, MatrixInput], Floats], list[Block]]:
        """As ``matrix_inputs`` of the first ``head`` positions and as ``logits``, of one reading.

        For models without an encoder. Raises RuntimeFailure, and ChildDied, which is no verdict.
        """
        return retry_once(lambda: self._inputs_and_logits(window, head))

    def _inputs_and_logits(
        self, window: Window, head: int
    ) -> tuple[tuple[dict[str, MatrixInput], Floats], list[Block]]:
        part = replace(window, ids=window.ids[:-1])
        wanted = protocol.INPUTS_WANTED | protocol.LOGITS_WANTED
        with self.reading() as loaded:
            size = self._piece(loaded, [part])
            logits = np.empty((len(part.ids), loaded.vocabulary), np.float32)
            loaded.send(request(wanted, size, [replace(part, scored_from=0)], head=head))
            inputs = loaded.inputs()
            for start, stop in protocol.pieces(len(part.ids), size, head):
                loaded.expect(protocol.LOGITS, 0, start, stop - start)
                loaded.fill(logits[start:stop])
        blocks = [
            Block(0, start, logits[start:stop]) for _, start, stop in answers([part], size) if start < stop
        ]
        return (joined([inputs]), logits[:head]), blocks

    @contextlib.contextmanager
    def reading(self) -> Iterator[Loaded]:
        """A file that waits for a request; its child ends if the block does not reach its end."""
        if self._loaded is None:
            raise RuntimeError("enter the reader first: with LlamaReader(...) as reader")
        if self._loaded.busy or self._loaded.closed:
            self._loaded.close()
            self._loaded = self._load()
        loaded = self._loaded
        loaded.busy = True
        try:
            yield loaded
        except BaseException:
            loaded.close()
            raise
        loaded.busy = False

    def _load(self) -> Loaded:
        """The file in a new child. Raises RuntimeFailure, ChildDied."""
        return Loaded(self.path, self._threads, self._born)

    def _born(self, loaded: Loaded) -> None:
        """A child was started, which loads the file now."""

    def _embedded(self, loaded: Loaded, parts: Sequence[Window]) -> list[Floats] | None:
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

    def _piece(self, loaded: Loaded, parts: Sequence[Window]) -> int:
        """Tokens to read at once."""
        rows = BLOCK_BYTES // (4 * loaded.vocabulary)
        size = self._batch or max(min(rows // 32 * 32, MAX_BATCH), 16)
        return min(size, max(1, *(len(part.ids) for part in parts)))


def request(
    wanted: int,
    size: int,
    parts: Sequence[Window],
    embedded: Sequence[Floats] | None = None,
    *,
    head: int = 0,
) -> bytes:
    """What the child is asked (llama_child.py): of these windows, ``size`` tokens decoded at once.

    ``head`` tokens of each are decoded before the others, if it is not 0, and inputs are of these.
    """
    wanted |= 0 if embedded is None else protocol.EMBEDDED
    message = [protocol.REQUEST.pack(wanted, size, head, len(parts))]
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
