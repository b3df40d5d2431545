"""Tokenizers that bring text into Unicode's composed form (NFC) first, which llama.cpp does not do.

transformers gives Qwen, GPT-NeoX (Polyglot-Ko) and Cohere tokenizers such a normalizer. Nearly all text is
in that form already; Hangul typed on macOS, for one, may not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.vocabulary import TokenType
from .token_settings import AddedToken
from .tokenizer import Source, composed

NFC = "NFC"

# A key of our own: text given to this file's vocabulary must be in that form (`kconv run` sees to it).
NORMALIZER = "kconv.tokenizer.normalizer"


def normalizer_metadata(source: Source) -> dict[str, str]:
    """The key a file of this tokenizer carries, if any."""
    return {NORMALIZER: NFC} if source.normalizes_to_nfc else {}


def as_trained(metadata: Mapping[str, Any], text: str) -> str:
    """``text`` in the form a file's vocabulary wants, special tokens that are spelled in it left alone."""
    if metadata.get(NORMALIZER) != NFC:
        return text
    return composed(text, _special_tokens(metadata), parse_special=True)


def _special_tokens(metadata: Mapping[str, Any]) -> list[AddedToken]:
    tokens, types = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if not isinstance(tokens, tuple) or not isinstance(types, tuple):
        return []
    special = (TokenType.CONTROL, TokenType.USER_DEFINED)
    pairs = enumerate(zip(tokens, types, strict=False))
    return [AddedToken(text, index) for index, (text, kind) in pairs if kind in special and text]
