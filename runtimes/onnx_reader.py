"""onnxruntime as the measured side: an ONNX folder reads windows, whole, token by token or in batches."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..core.errors import InputError
from ..core.windows import Window
from .onnx_child import PADDING
from .onnx_folder import GROUPED, OnnxFolder
from .onnx_process import OnnxProcess
from .reader import Block, Ids

STEPS = 32
"""Tokens of a window read one by one: each takes a pass over the weights."""
STEPPED_WINDOWS = 4
_SHORTER = 5  # tokens each of them is shorter than the one before, so that a batch of two needs padding
_PADDING = 3  # tokens of it at least
_LOGITS = 256 << 20  # bytes of logits a reading may give at once
_COLUMNS = 1 << 18  # tokens of a vocabulary, where config.json does not say


class OnnxReader:
    """An ONNX folder in onnxruntime on the CPU; reader.LogitsSource describes ``logits``.

    A window is read at once, from an empty cache; only where its logits would take more than 256 MiB in
    pieces. ``stepwise``: up to its first scored position at once, then token by token, as text is generated.
    """

    def __init__(self, folder: OnnxFolder, *, threads: int, stepwise: bool = False) -> None:
        self.path = folder.path
        self._process = OnnxProcess(folder, threads=threads)
        self._stepwise, self._batched = stepwise, False
        self._in_steps = GROUPED in folder.operators
        vocabulary = folder.config.get("vocab_size")
        self._at_once = max(
            1, _LOGITS // (4 * (vocabulary if isinstance(vocabulary, int) and vocabulary > 0 else _COLUMNS))
        )

    def __enter__(self) -> OnnxReader:
        self._process.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self._process.__exit__(*failure)

    def token_by_token(self) -> OnnxReader:
        """The same running models, read stepwise."""
        other = copy.copy(self)
        other._stepwise = True
        return other

    def in_batches(self) -> OnnxReader:
        """The same running models, reading two windows at once, in two parts through the cache.

        They are padded before a decoder's tokens and after an encoder's. GroupQueryAttention takes one token
        of each at a time behind a cache, which the second part then is read by.
        """
        other = copy.copy(self)
        other._batched = True
        return other

    def logits(self, windows: Sequence[Window]) -> Iterator[Block]:
        """Logits of all scored positions of all windows, in order. Raises RuntimeFailure."""
        if self._batched:
            wanted = [index for index, window in enumerate(windows) if window.scored]
            for at in range(0, len(wanted), 2):
                yield from self._together({index: windows[index] for index in wanted[at : at + 2]})
            return
        for index, window in enumerate(windows):
            if not window.scored:
                continue
            self._process.begin(window.source)
            for start, stop in self._pieces(window):
                first = max(start, window.scored_from)
                rows = self._process.read(window.ids[start:stop], max(stop - first, 0))
                if len(rows):
                    yield Block(index, first, rows)

    def _together(self, windows: Mapping[int, Window]) -> Iterator[Block]:
        """A batch, read in two parts, the second of which goes on from the cache of the first."""
        texts = {index: window.ids[:-1] for index, window in windows.items()}
        sources = [window.source for window in windows.values()]
        if any(sources):  # an encoder's padding comes last; its decoder sees nothing of what follows
            self._process.begin(_matrix(sources, before=False))
            ids, split = _matrix(list(texts.values()), before=False), 1
        else:
            self._process.begin()
            ids = _matrix(list(texts.values()), before=True)
            split = ids.shape[1] - (min(map(len, texts.values())) + 1) // 2
        size = 1 if self._in_steps else ids.shape[1]
        parts = [ids[:, :split], *(ids[:, at : at + size] for at in range(split, ids.shape[1], size))]
        logits = np.concatenate([self._process.read(part, part.shape[1]) for part in parts], axis=1)
        for (index, text), row, own in zip(texts.items(), logits, ids >= 0, strict=True):
            start = windows[index].scored_from
            yield Block(index, start, row[own][start : len(text)])

    def check(self, windows: Sequence[Window], first: int | None) -> None:
        """Raise InputError for windows that cannot be read as a whole and must be.

        LongRoPE turns all positions of a text otherwise once it is longer than ``first`` tokens (None:
        never), so that pieces read before that would be wrong, and are in transformers' cache, too.
        """
        longest = max((len(window.ids) for window in windows), default=0)
        if first is not None and longest > first and longest - 1 > self._at_once:
            raise InputError(
                f"{self.path}: windows of {longest:,} tokens are read in pieces of {self._at_once:,}, but "
                f"with LongRoPE a text of more than {first:,} tokens can only be read at once",
                hint=f"pass --window with at most {max(first, self._at_once):,} tokens",
            )

    def _pieces(self, window: Window) -> Iterator[tuple[int, int]]:
        """What is read at once; a window's last token predicts none that is known."""
        end = len(window.ids) - 1
        first, size = (window.scored_from + 1, 1) if self._stepwise else (self._at_once, self._at_once)
        return itertools.pairwise([0, *range(first, end, size), end])


def stepped(windows: Sequence[Window]) -> list[Window]:
    """What is read token by token: the beginning of the first window of each text, at most four.

    A decoder alone is given as many tokens before at once; one with an encoder its start token. Each window
    is a little shorter than the one before.
    """
    firsts = {window.text: window for window in reversed(windows)}
    chosen = []
    for at, window in enumerate([firsts[text] for text in sorted(firsts)][:STEPPED_WINDOWS]):
        before = 0 if window.source else min(STEPS, len(window.ids) // 2) - 1
        end = before + STEPS + 1 - at * _SHORTER
        chosen.append(replace(window, ids=window.ids[:end], scored_from=max(before, 0)))
    return chosen


def _matrix(texts: Sequence[Sequence[int]], *, before: bool) -> Ids:
    """Texts as a matrix, a row a text, padded to more than the longest has."""
    width = max(map(len, texts)) + _PADDING
    matrix = np.full((len(texts), width), PADDING, np.int64)
    for row, ids in zip(matrix, texts, strict=True):
        row[width - len(ids) if before else 0 :][: len(ids)] = ids
    return matrix
