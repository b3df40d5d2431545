"""Tokens that were added to a tokenizer after the model was trained, for which the embedding has no row.

Such a model runs as long as no text spells one of them. llama.cpp has no vocabulary larger than the
embedding, so they are refused by name, or left out (``--drop-extra-tokens``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.errors import VocabError
from ..core.input_files import quoted
from ..core.model import Note
from ..core.vocabulary import TokenType, Vocab
from .token_settings import TokenSettings

EXTRA_TOKENS = "extra-tokens"
"""The name of the note of those left out."""
_SHOWN = 8
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN, TokenType.UNUSED)


def refuse_extra(vocab: Vocab, rows: int) -> None:
    """Raises VocabError where there are more tokens than rows, naming those without one."""
    if vocab.size <= rows:
        return
    extra = range(rows, vocab.size)
    texts = [vocab.tokens[index] for index in extra if vocab.tokens[index]]
    hint = "take the tokenizer the weights were trained with, or resize the model's embeddings to it"
    if all(vocab.types[index] in _ADDED for index in extra):
        hint = (
            "they were added without resizing the embedding: --drop-extra-tokens leaves them "
            "out (texts that spell them are then read as ordinary text), or call "
            "resize_token_embeddings and train them"
        )
    raise VocabError(
        f"the tokenizer has {vocab.size} tokens, the embedding only {rows} rows; without a row: "
        f"{listed(texts)}",
        hint=hint,
    )


def listed(texts: Sequence[str]) -> str:
    """Token texts for people, at most eight."""
    more = len(texts) - _SHOWN
    return ", ".join(map(quoted, texts[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def leave_out(spec: dict[str, Any], rows: int) -> list[str]:
    """Take added tokens from id ``rows`` on out of a tokenizer.json; their texts, which a note names.

    An entry of the model's own vocabulary stays: no option makes a tokenizer of another model fit.
    """
    added = spec.get("added_tokens")
    if not isinstance(added, list):
        return []
    extra = [token for token in added if _beyond(token, rows)]
    spec["added_tokens"] = [token for token in added if not _beyond(token, rows)]
    texts = [str(token.get("content")) for token in extra]
    vocabulary = spec["model"].get("vocab")
    if isinstance(vocabulary, dict):
        for text in texts:
            if isinstance(vocabulary.get(text), int) and vocabulary[text] >= rows:
                del vocabulary[text]
    return texts


def _beyond(token: Any, rows: int) -> bool:
    return isinstance(token, Mapping) and isinstance(token.get("id"), int) and token["id"] >= rows


def within_rows(settings: TokenSettings, rows: int, others: Sequence[str] = ()) -> TokenSettings:
    """The settings without the added tokens beyond the rows and their roles, with a note that names them.

    ``others`` are those of tokenizer.json.
    """
    own = (token.text for token in settings.added if token.id is not None and token.id >= rows)
    extra = dict.fromkeys([*own, *others])
    if not extra:
        return settings
    message = (
        "tokens without a row in the embedding are left out (--drop-extra-tokens): "
        f"{listed([*extra])}; texts that spell them are read as ordinary text"
    )
    return replace(
        settings,
        added=tuple(token for token in settings.added if token.text not in extra),
        roles={role: text for role, text in settings.roles.items() if text not in extra},
        notes=(*settings.notes, Note(EXTRA_TOKENS, message, warning=True)),
    )
