"""Requests whose texts have been through what a tokenizer does to them by itself and llama.cpp does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .probe import Request
from .tokenizer import Source
from .wordpiece import ordinary


def spaced(as_is: Sequence[Request], source: Source, *, adds_space: bool) -> dict[int, Request]:
    """The requests by index, with the tokenizer's own handling of spaces written out; empty if none."""
    if source.prefix is None and not source.collapses_spaces:
        return {}
    written = [
        source.written_out(request.text, request.parse_special, adds_space=adds_space) for request in as_is
    ]
    if all(text == request.text for text, request in zip(written, as_is, strict=True)):
        return {}
    return {at: as_is[at]._replace(text=text) for at, text in enumerate(written) if text is not None}


def composed(as_is: Sequence[Request], source: Source) -> dict[int, Request]:
    """The requests by index whose text is not in NFC, in that form; empty for tokenizers that leave it."""
    return _changed(as_is, source.composed) if source.normalizes_to_nfc else {}


def ordinary_words(as_is: Sequence[Request], source: Source) -> dict[int, Request]:
    """The requests by index whose text has words a WordPiece tokenizer finds unknown; empty for others."""
    plain = ordinary(source)
    return {} if plain is None else _changed(as_is, plain)


def _changed(as_is: Sequence[Request], rewrite: Callable[[str, bool], str]) -> dict[int, Request]:
    texts = (rewrite(request.text, request.parse_special) for request in as_is)
    return {at: as_is[at]._replace(text=text) for at, text in enumerate(texts) if text != as_is[at].text}
