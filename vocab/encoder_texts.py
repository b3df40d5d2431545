"""What the proof of an encoder reads: texts as they are embedded, with what stands around each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from ..core.errors import InputError
from ..core.windows import Window
from .parity import Declared
from .texts import udhr
from .tokenizer import Source

_LANGUAGES = ("kor", "eng")
_PARAGRAPHS = {"quick": 6, "full": 32}
_LONGEST = {"quick": 96, "full": 512}
_WORDS = ("안녕하세요", "a")  # texts of a token or two


def built_in_texts(
    source: Source, around: Declared, context: int, scope: Literal["quick", "full"], tokens: int | None = None
) -> list[Window]:
    """Paragraphs of the Universal Declaration of Human Rights, single words, and a long text a language.

    ``tokens`` limits how many are read of each language.
    """
    windows: list[Window] = []
    texts = [source.encode(word, False) for word in _WORDS]
    for language in _LANGUAGES:
        paragraphs = [source.encode(text, False) for text in udhr(language)]
        whole = [token for paragraph in paragraphs for token in paragraph]
        room = min(_LONGEST[scope], context) - len(around.before) - len(around.after)
        chosen = [whole[:room], *paragraphs[:: max(1, len(paragraphs) // _PARAGRAPHS[scope])]]
        texts += [list(ids) for ids in _within(chosen, tokens)]
    for ids in texts:
        windows.append(_window(len(windows), ids, around, context))
    return windows


def given_texts(
    source: Source, around: Declared, context: int, texts: Sequence[str], tokens: int | None = None
) -> list[Window]:
    """Every line of the user's texts by itself, longer ones in pieces. Raises InputError for none."""
    windows: list[Window] = []
    room = max(1, context - len(around.before) - len(around.after))
    for text in texts:
        lines = [source.encode(line, True) for line in text.splitlines() if line.strip()]
        for ids in _within(lines, tokens):
            pieces = (ids[at : at + room] for at in range(0, len(ids), room))
            windows += [_window(0, piece, around, context) for piece in pieces]
    if not windows:
        raise InputError("the text has no line to embed", hint="give a text with a sentence on each line")
    return [Window(at, window.ids) for at, window in enumerate(windows)]


def _within(texts: Sequence[Sequence[int]], tokens: int | None) -> Iterator[Sequence[int]]:
    left = sum(map(len, texts)) if tokens is None else tokens
    for ids in texts:
        if left <= 0:
            return
        yield ids[:left]
        left -= len(ids)


def _window(number: int, ids: Sequence[int], around: Declared, context: int) -> Window:
    room = max(0, context - len(around.before) - len(around.after))
    return Window(number, (*around.before, *ids[:room], *around.after))
