"""Ordinary words that were added to a tokenizer as special tokens.

Trainers do so for words of a field (``부가가치세``). A file marks special tokens as control tokens, and
llama.cpp prints those as nothing, so the words would be missing from answers. ``kconv run`` prints them.
"""

from __future__ import annotations

from dataclasses import replace

from ..core.model import Note
from ..core.vocabulary import TokenType, Vocab, is_word
from .context import AdapterContext
from .extra_tokens import listed


def added_words(vocab: Vocab, context: AdapterContext) -> tuple[Vocab, tuple[Note, ...]]:
    """Warn of the words, or write them as user-defined tokens where that was asked for."""
    roles, control = set(vocab.special.values()), TokenType.CONTROL
    words = [
        index
        for index, kind in enumerate(vocab.types)
        if kind is control and index not in roles and is_word(vocab.tokens[index])
    ]
    if not words:
        return vocab, ()
    named = listed([vocab.tokens[index] for index in words])
    if not context.words_as_text:
        message = (
            f"ordinary words among the special tokens, which llama.cpp prints as nothing: {named}; "
            "--words-as-text writes them as text (kconv run prints them either way)"
        )
        return vocab, (Note("added-words", message, warning=True),)
    types = list(vocab.types)
    for index in words:
        types[index] = TokenType.USER_DEFINED
    message = f"words among the special tokens are written as text, as requested: {named}"
    return replace(vocab, types=tuple(types)), (Note("added-words", message),)
