"""onnxruntime as the measured side: an ONNX folder reads windows, whole or token by token."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType

from .candidate import Block
from .onnx_folder import OnnxFolder
from .onnx_process import OnnxProcess
from .windows import Window

STEPS = 32
"""Tokens of a window read one by one: each takes a pass over the weights."""
STEPPED_WINDOWS = 4
_LOGITS = 256 << 20  # bytes of logits a reading may give at once
_COLUMNS = 1 << 18  # tokens of a vocabulary, where config.json does not say


class OnnxCandidate:
    """An ONNX folder in onnxruntime on the CPU; candidate.LogitsSource describes ``logits``.

    A window is read at once, from an empty cache; only where its logits would take more than 256 MiB in
    pieces. ``stepwise``: up to its first scored position at once, then token by token, as text is generated.
    """

    def __init__(self, folder: OnnxFolder, *, threads: int, stepwise: bool = False) -> None:
        self.path = folder.path
        self._process, self._stepwise = OnnxProcess(folder, threads=threads), stepwise
        told = folder.config.get("vocab_size")
        self._at_once = max(1, _LOGITS // (4 * (told if isinstance(told, int) and told > 0 else _COLUMNS)))

    def __enter__(self) -> OnnxCandidate:
        self._process.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.__exit__(kind, error, trace)

    def token_by_token(self) -> OnnxCandidate:
        """The same running models, read stepwise."""
        other = copy.copy(self)
        other._stepwise = True
        return other

    def logits(self, windows: Sequence[Window]) -> Iterator[Block]:
        """Logits of all scored positions of all windows, in order. Raises CandidateFailure."""
        for index, window in enumerate(windows):
            if not window.scored:
                continue
            self._process.begin(window.source)
            for start, stop in self._pieces(window):
                first = max(start, window.scored_from)
                found = self._process.read(window.ids[start:stop], max(stop - first, 0))
                if len(found):
                    yield Block(index, first, found)

    def _pieces(self, window: Window) -> Iterator[tuple[int, int]]:
        """What is read at once; a window's last token predicts none that is known."""
        end = len(window.ids) - 1
        first, size = (window.scored_from + 1, 1) if self._stepwise else (self._at_once, self._at_once)
        return itertools.pairwise([0, *range(first, end, size), end])


def stepped(windows: Sequence[Window]) -> list[Window]:
    """What is read token by token: the beginning of the first window of each text, at most four.

    A decoder alone is given as many tokens before at once; one with an encoder its start token.
    """
    firsts = {window.text: window for window in reversed(windows)}
    found = []
    for window in [firsts[text] for text in sorted(firsts)][:STEPPED_WINDOWS]:
        before = 0 if window.source else min(STEPS, len(window.ids) // 2) - 1
        found.append(replace(window, ids=window.ids[: before + STEPS + 1], scored_from=max(before, 0)))
    return found
