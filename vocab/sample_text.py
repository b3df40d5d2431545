"""What a proof reads by default: the Universal Declaration of Human Rights, Korean and English."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..core.windows import Window, cut
from .texts import udhr
from .tokenizer import Source

# Tokens of each language: a conversion reads a few hundred, a verification some thousand.
QUICK = {"kor": 160, "eng": 96}
LONG = {"kor": 1024, "eng": 1024}
WINDOW = 512


def sample_windows(
    source: Source, amounts: Mapping[str, int], *, size: int, before: Sequence[int] = ()
) -> list[Window]:
    """Windows of the beginning of each text, as many tokens as ``amounts`` says (or as there are)."""
    windows: list[Window] = []
    for at, (language, tokens) in enumerate(amounts.items()):
        ids = source.encode_lines(udhr(language))
        windows += [
            Window(at, window.ids, window.scored_from)
            for window in cut([ids], size=size, before=before, tokens=tokens)
        ]
    return windows
