"""Tokenizers that bring text into Unicode's composed form (NFC) first, which llama.cpp does not do.

transformers gives Qwen, GPT-NeoX (Polyglot-Ko) and Cohere tokenizers such a normalizer. Nearly all text is
in that form already; Hangul typed on macOS, for one, may not be.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any

from ..core.vocabulary import TokenType
from .tokenizer import Source

NFC = "NFC"

# A key of our own: text given to this file's vocabulary must be in that form (`kconv run` sees to it).
NORMALIZER = "kconv.tokenizer.normalizer"


def normalizer_metadata(source: Source) -> dict[str, str]:
    """The key a file of this tokenizer carries, if any."""
    return {NORMALIZER: NFC} if source.normalizes_to_nfc else {}


def as_trained(metadata: Mapping[str, Any], text: str) -> str:
    """``text`` in the form a file's vocabulary wants, special tokens that are spelled in it left alone."""
    if metadata.get(NORMALIZER) != NFC or unicodedata.is_normalized("NFC", text):
        return text
    return composed(text, _special_texts(metadata))


def composed(text: str, kept: Collection[str]) -> str:
    """``text`` in NFC between the texts of ``kept``, which are matched before a tokenizer normalizes."""
    if not kept:
        return unicodedata.normalize("NFC", text)
    pattern = "|".join(re.escape(each) for each in sorted(kept, key=len, reverse=True))
    parts = re.split(f"({pattern})", text)
    return "".join(
        part if at % 2 else unicodedata.normalize("NFC", part)  # re.split: every second one is a match
        for at, part in enumerate(parts)
    )


def _special_texts(metadata: Mapping[str, Any]) -> list[str]:
    tokens, types = (metadata.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if not isinstance(tokens, tuple) or not isinstance(types, tuple):
        return []
    special = (TokenType.CONTROL, TokenType.USER_DEFINED)
    return [text for text, kind in zip(tokens, types, strict=False) if kind in special and text]
