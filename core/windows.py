"""Texts cut into windows of tokens: what both models read, each window by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .errors import InputError


@dataclass(frozen=True)
class Window:
    """Tokens both models read from an empty cache.

    Position ``p`` predicts token ``p + 1``; positions ``scored_from`` to ``len(ids) - 2`` count.
    ``text`` is the index of the text the window was cut from. ``source`` is what the encoder of an
    encoder-decoder reads, EOS and all; ``ids`` are then the decoder's and begin with its start token.
    """

    text: int
    ids: tuple[int, ...]
    scored_from: int = 0
    source: tuple[int, ...] = ()

    @property
    def scored(self) -> range:
        """Positions that count."""
        return range(self.scored_from, len(self.ids) - 1)

    @property
    def tokens(self) -> int:
        """How many tokens are read."""
        return len(self.source) + len(self.ids)


def evenly(windows: Sequence[Window], most: int) -> tuple[Window, ...]:
    """The windows, or so many of them that lie evenly among all."""
    if most >= len(windows):
        return tuple(windows)
    return tuple(windows[at * len(windows) // most] for at in range(most))


def cut(
    texts: Sequence[Sequence[int]], *, size: int, before: Sequence[int] = (), tokens: int | None = None
) -> list[Window]:
    """Windows of at most ``size`` tokens, each beginning with the tokens ``before`` (a BOS, or none).

    ``tokens`` limits how many are taken of each text, ``before`` included as it stands in each window. A rest
    of fewer than two predictions is left out, since nothing could be measured on it. Raises InputError for a
    text, and for windows, too short for a single prediction.
    """
    room = size - len(before)
    if room < 1 or size < 2:
        raise InputError(
            f"windows of {size} token{'' if size == 1 else 's'} leave nothing to predict",
            hint="use longer windows; a model with such a short context cannot be measured",
        )
    windows: list[Window] = []
    for index, text in enumerate(texts):
        left = len(text) * (1 + len(before)) if tokens is None else tokens
        made: list[Window] = []
        start = 0
        while start < len(text) and left > len(before):
            piece = tuple(text[start : start + min(room, left - len(before))])
            start, left = start + len(piece), left - len(before) - len(piece)
            if len(before) + len(piece) >= 2 and (len(piece) > 1 or not made):
                made.append(Window(index, (*before, *piece)))
        if not made:
            amount = "1 token" if len(text) == 1 else f"{len(text)} tokens"
            raise InputError(
                f"text {index + 1} has {amount}, too few to predict any",
                hint="give a longer text",
            )
        windows += made
    return windows
