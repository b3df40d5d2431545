"""A file that is read before anybody asks: llama.cpp computes beside the reference, not in turn with it.

A proof asks a file for what its matrices are multiplied by and then for its logits, and computes with torch
in between. ``EarlyReader`` asks for both at once, in a thread, and keeps the answers until they are wanted.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from ..core.errors import ChildDied
from ..core.windows import Window
from .llama_loaded import Loaded
from .llama_reader import LlamaReader
from .matrix_inputs import MatrixInput
from .reader import Block, Floats


@dataclass(frozen=True)
class Asked:
    """What a file will be asked: the window whose matrices' inputs are wanted, and those for logits."""

    inputs_of: Window
    windows: tuple[Window, ...]


class EarlyReader(LlamaReader):
    """A LlamaReader that has ``asked`` itself; answers and failures are those it would give later.

    ``begin`` starts its thread. ``read`` is called once nothing is left to read early, and ``closed`` once
    the reader is left. Whatever else it is asked it answers afterwards, as any reader.
    """

    def __init__(
        self,
        path: Path,
        asked: Asked,
        *,
        threads: int,
        read: Callable[[], None] = lambda: None,
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(path, threads=threads)
        self._asked, self._read, self._closed = asked, read, closed
        self._entered: Future[None] = Future()
        self._inputs: Future[tuple[dict[str, MatrixInput], Floats]] | None = Future()
        self._blocks: deque[Future[Block | None]] | None = deque([Future()])
        self._left = self._done = False
        self._thread = threading.Thread(target=self._work, name="kconv-early", daemon=True)
        self._begun = threading.Lock()

    @property
    def begun(self) -> bool:
        """Whether it reads, or has."""
        return self._thread.ident is not None

    @property
    def reading_early(self) -> bool:
        """Whether it is at what was asked early."""
        return self.begun and not self._done

    @property
    def left(self) -> bool:
        """Whether it is closed."""
        return self._left

    def begin(self) -> None:
        """Begin to read, unless that was begun."""
        with self._begun:
            if not self._left and not self.begun:
                self._thread.start()

    def __enter__(self) -> Self:
        self.begin()
        self._entered.result()
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def close(self) -> None:
        """End the reading, whatever it is at; calling it again does nothing."""
        with self._begun:
            if self._left:
                return
            self._left = True
        if self.begun:
            if (loaded := self._loaded) is not None:
                loaded.kill()
            self._thread.join()
        self._inputs = self._blocks = None
        super().__exit__()
        self._closed()

    def matrix_inputs(self, window: Window) -> tuple[dict[str, MatrixInput], Floats]:
        """As LlamaReader's; what was read early is given once."""
        early, self._inputs = self._inputs, None
        if early is not None and window == self._asked.inputs_of:
            return early.result()
        self._thread.join()
        return super().matrix_inputs(window)

    def logits(self, windows: Sequence[Window]) -> Iterator[Block]:
        """As LlamaReader's; what was read early is given once."""
        early, self._blocks = self._blocks, None
        if early is None or tuple(windows) != self._asked.windows:
            self._thread.join()
            yield from super().logits(windows)
            return
        while (block := early[0].result()) is not None:
            yield block
            early.popleft()

    def layers(self, window: Window) -> list[Floats]:
        """As LlamaReader's."""
        self._thread.join()
        return super().layers(window)

    def _load(self) -> Loaded:
        if self._left:
            raise ChildDied("the reading was ended")
        return super()._load()

    def _born(self, loaded: Loaded) -> None:
        """Known before the file is loaded, which may take long, so that it can be ended meanwhile."""
        self._loaded = loaded
        if self._left:
            loaded.kill()

    def _work(self) -> None:
        blocks, inputs = self._blocks, self._inputs
        assert blocks is not None
        assert inputs is not None
        waiting: list[Future[None] | Future[Block | None] | Future[tuple[dict[str, MatrixInput], Floats]]]
        waiting = [self._entered, inputs, blocks[0]]
        try:
            super().__enter__()
            self._entered.set_result(None)
            for block in self._read_early(inputs):
                answer, following = blocks[-1], Future[Block | None]()
                waiting.append(following)
                blocks.append(following)
                answer.set_result(block)
            blocks[-1].set_result(None)
        except BaseException as failure:  # whoever waits is told
            for future in waiting:
                if not future.done():
                    future.set_exception(failure)
        self._done = True
        self._read()

    def _read_early(self, inputs: Future[tuple[dict[str, MatrixInput], Floats]]) -> Iterator[Block]:
        """What was asked, in blocks that stay; ``inputs`` are given before the first.

        Where those are of the beginning of the first window, which it is read for anyway, it is read once.
        """
        asked, windows = self._asked, self._asked.windows
        if self._is_beginning():
            found, blocks = super().inputs_and_logits(windows[0], len(asked.inputs_of.ids))
            inputs.set_result(found)
            yield from blocks
            windows = (replace(windows[0], scored_from=len(windows[0].ids)), *windows[1:])
        else:
            inputs.set_result(super().matrix_inputs(asked.inputs_of))
        for block in super().logits(windows):
            yield replace(block, logits=block.logits.copy())

    def _is_beginning(self) -> bool:
        """Whether the inputs asked for come up where the first window is read for its logits.

        With frequencies by the size of the context they do not.
        """
        loaded, head = self._loaded, self._asked.inputs_of
        if (
            loaded is None
            or loaded.first_context is not None
            or loaded.encoder_layers
            or self._front is not None
        ):
            return False
        window = next(iter(self._asked.windows), None)
        if window is None or not window.scored or window.source != head.source or head.scored_from:
            return False
        return len(head.ids) < len(window.ids) - 1 and window.ids[: len(head.ids)] == head.ids
