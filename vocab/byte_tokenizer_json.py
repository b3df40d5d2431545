"""A tokenizer.json equal to ByT5Tokenizer, for what reads nothing else: tokenizers, Transformers.js.

ByT5's folders have none, since its tokenizer is code. A byte-level BPE whose tokens are single bytes, without
a merge, is the same function (see byte_vocabulary.py). Three ways of ByT5Tokenizer no such file can have, and
each takes an odd text to show: it appends no second ``</s>`` to a text that ends in one; the white space it
drops beside a spelled ``<pad>``, ``</s>`` or ``<unk>`` is Python's, which counts the separators U+001C to
U+001F; and decoding, it shows bytes that are no UTF-8 as nothing but keeps U+FFFD where the text has it.
"""

from __future__ import annotations

import json
from typing import Any

from ..core.errors import VocabError
from .byte_vocabulary import KIND, OFFSET
from .token_settings import AddedToken
from .tokenizer import Source


def byte_tokenizer_json(source: Source) -> str:
    """The tokenizer.json, as text, of a vocabulary of bytes. Raises VocabError for any other vocabulary."""
    if source.kind != KIND:
        raise VocabError(f"a tokenizer of {source.kind} is no vocabulary of bytes")
    parts: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token) for token in source.added],
        "normalizer": None,
        "pre_tokenizer": _BYTES,
        "post_processor": _appending(source, source.special["eos"]),
        # The tokenizers library shows bytes that are no UTF-8 (masks, letters cut short) as U+FFFD.
        "decoder": {"type": "Sequence", "decoders": [_BYTES, _NO_REPLACEMENT]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {text: index for index, text in enumerate(source.tokens) if text is not None},
            "merges": [],
        },
    }
    return json.dumps(parts, ensure_ascii=False, indent=2) + "\n"


_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_NO_REPLACEMENT = {"type": "Replace", "pattern": {"String": "\ufffd"}, "content": ""}


def _added(token: AddedToken) -> dict[str, Any]:
    base = (token.id or 0) < OFFSET  # <pad>, </s> and <unk> take the white space beside them
    return {
        "id": token.id,
        "content": token.text,
        "single_word": False,
        "lstrip": base,
        "rstrip": base,
        "normalized": False,
        "special": token.special,
    }


def _appending(source: Source, eos: int) -> dict[str, Any]:
    """The end token after each of one or two texts; both are of type 0, as ByT5 has it."""
    text = source.tokens[eos]
    end = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [first, end],
        "pair": [first, end, second, end],
        "special_tokens": {text: {"id": text, "ids": [eos], "tokens": [text]}},
    }
