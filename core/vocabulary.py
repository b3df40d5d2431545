"""A vocabulary as llama.cpp reads it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

BPE, SPM, UNIGRAM, WORDPIECE = "gpt2", "llama", "t5", "bert"
"""llama.cpp's names for byte-level BPE, SentencePiece BPE, SentencePiece unigram and WordPiece, in whatever
architecture."""

GEMMA4 = "gemma4"
"""A byte-level BPE with the pre-tokenizer of that name."""


class TokenType(IntEnum):
    """Values of ``tokenizer.ggml.token_type`` (llama.h, enum llama_token_type)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_ROLE_NAMES = frozenset({"bos", "eos", "pad", "unk", "cls", "sep", "mask", "eot", "eod", "s", "endoftext"})


def is_word(text: str) -> bool:
    """Whether a token's text is one people would want to read, and no mark like ``<s>`` or ``[PAD]``."""
    return bool(text) and text[0].isalnum() and text[-1].isalnum() and text.lower() not in _ROLE_NAMES


@dataclass(frozen=True)
class Vocab:
    """What goes under ``tokenizer.*`` in a GGUF.

    ``model`` is llama.cpp's tokenizer model: ``gpt2`` (byte-level BPE, needs ``merges`` and ``pre``),
    ``llama`` (SentencePiece BPE, needs ``scores``) or ``t5`` (SentencePiece unigram, needs ``scores``; knows
    ``remove_extra_whitespaces`` and SentencePiece's compiled normalization, ``charsmap``) or ``bert``
    (WordPiece, knows ``lowercase`` and ``strip_accents``, and always puts BOS before and the separator after
    a text). ``special`` maps
    role to id; roles are those of the GGUF keys ``tokenizer.ggml.<role>_token_id``: bos, eos, unknown,
    padding, mask, eot …. ``tokens``, ``types`` and ``scores`` (empty where the model has none) run by id and
    are equally long.
    """

    model: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    pre: str = "default"
    special: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    remove_extra_whitespaces: bool = False
    charsmap: bytes = b""
    lowercase: bool = False
    strip_accents: bool = False
    chat_template: str | None = None

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.tokens)

    @property
    def ids(self) -> Mapping[str, int]:
        """The id of each token by its text."""
        return _ids(self.tokens)

    def ids_of(self, texts: Iterable[str]) -> dict[str, int]:
        """The ids of those texts that are tokens."""
        ids = self.ids
        return {text: ids[text] for text in texts if text in ids}


@functools.lru_cache(maxsize=1)  # asked again and again while types and roles change, and tokens do not
def _ids(tokens: tuple[str, ...]) -> Mapping[str, int]:
    return dict(zip(tokens, range(len(tokens)), strict=True))


Value = str | bool | int | bytes | tuple[str, ...] | tuple[float, ...] | tuple[int, ...]


def gguf_keys(vocab: Vocab) -> dict[str, Value]:
    """All ``tokenizer.*`` keys of a vocabulary, the flags always explicit.

    llama.cpp guesses add_bos and add_space_prefix from the model and the pre-tokenizer's name where the keys
    are missing (src/llama-vocab.cpp), so they are never left out.
    """
    keys: dict[str, Value] = {
        "tokenizer.ggml.model": vocab.model,
        "tokenizer.ggml.pre": vocab.pre,
        "tokenizer.ggml.tokens": vocab.tokens,
        "tokenizer.ggml.token_type": tuple(map(int, vocab.types)),
    }
    if vocab.scores:
        keys["tokenizer.ggml.scores"] = vocab.scores
    if vocab.merges:
        keys["tokenizer.ggml.merges"] = vocab.merges
    for role, token_id in vocab.special.items():
        keys[f"tokenizer.ggml.{role}_token_id"] = token_id
    keys["tokenizer.ggml.add_bos_token"] = vocab.add_bos
    keys["tokenizer.ggml.add_eos_token"] = vocab.add_eos
    keys["tokenizer.ggml.add_space_prefix"] = vocab.add_space_prefix
    if vocab.model == UNIGRAM:
        keys["tokenizer.ggml.remove_extra_whitespaces"] = vocab.remove_extra_whitespaces
        if vocab.charsmap:
            keys["tokenizer.ggml.precompiled_charsmap"] = vocab.charsmap
    if vocab.model == WORDPIECE:  # llama.cpp lowercases and strips accents where the keys are missing
        keys["tokenizer.ggml.add_sep_token"] = True
        keys["tokenizer.ggml.normalizer.lowercase"] = vocab.lowercase
        keys["tokenizer.ggml.normalizer.strip_accents"] = vocab.strip_accents
    if vocab.chat_template is not None:
        keys["tokenizer.chat_template"] = vocab.chat_template
    return keys
