"""Vocabularies that do not put a space before a text, though the checkpoint's tokenizer does."""

from __future__ import annotations

from dataclasses import replace

from ..core.model import Note
from ..core.vocabulary import TokenType, Vocab
from .templates import SOME_DAY, render_chat

# A key of our own: text given to this file's vocabulary must begin with a space (`kconv run` adds it).
LEADING_SPACE = "kconv.leading_space"

_QUESTION = [{"role": "user", "content": "?"}]
# An output, since a space at the very beginning would be lost where the template begins with {%- or {#-.
_SPACE = "{{ ' ' }}"


def with_space_in_template(vocab: Vocab) -> tuple[Vocab, tuple[Note, ...]]:
    """Let chats begin with the space; after a special token it has no place, which a note says.

    Raises VocabError where the template cannot be rendered.
    """
    if vocab.chat_template is None:
        return vocab, ()
    texts = {role: vocab.tokens[vocab.special[role]] for role in ("bos", "eos") if role in vocab.special}
    rendered = render_chat(
        vocab.chat_template,
        _QUESTION,
        bos_token=texts.get("bos", ""),
        eos_token=texts.get("eos", ""),
        moment=SOME_DAY,
    )
    control = (t for t, kind in zip(vocab.tokens, vocab.types, strict=True) if kind is TokenType.CONTROL)
    first = next((text for text in control if text and rendered.startswith(text)), None)
    if first is None:
        return replace(vocab, chat_template=_SPACE + vocab.chat_template), ()
    message = f"the chat begins with {first}, after which the tokenizer adds a space and llama.cpp does not"
    return vocab, (Note("leading-space-chat", message, warning=True),)
