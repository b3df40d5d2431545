"""A tokenizer.json for tokenizers that have none: for what reads nothing else, as Transformers.js.

ByT5's tokenizer is code. A byte-level BPE whose tokens are single bytes, without a merge, is the same
function (see byte_vocabulary.py). Three ways of ByT5Tokenizer no such file can have, and each takes an odd
text to show: it appends no second ``</s>`` to a text that ends in one; the white space it drops beside a
spelled ``<pad>``, ``</s>`` or ``<unk>`` is Python's, which counts the separators U+001C to U+001F; and
decoding, it shows bytes that are no UTF-8 as nothing but keeps U+FFFD where the text has it.

GPT-2's tokenizer is vocab.json and merges.txt, and what is added in other files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ..core.errors import VocabError
from .byte_vocabulary import KIND
from .token_settings import AddedToken
from .tokenizer import Source


def byte_tokenizer_json(source: Source) -> str:
    """The text of ByT5's tokenizer.json. Raises VocabError where ``source`` is no vocabulary of bytes."""
    if source.kind != KIND:
        raise VocabError(f"a {source.kind} tokenizer is not a byte vocabulary")
    bytes_ = _byte_level(use_regex=False)
    # The tokenizers library shows bytes that are no UTF-8 (masks, letters cut short) as U+FFFD.
    nothing = {"type": "Replace", "pattern": {"String": "\ufffd"}, "content": ""}
    decoder = {"type": "Sequence", "decoders": [bytes_, nothing]}
    return tokenizer_text(source, bpe_model(source, source.merges), decoder, pre_tokenizer=bytes_)


def gpt2_tokenizer_json(source: Source) -> str:
    """The text of a tokenizer.json for vocab.json and merges.txt. Raises VocabError for other sources."""
    if "merges.txt" not in source.description.files:
        raise VocabError(f"a {source.kind} tokenizer has no vocab.json and merges.txt in GPT-2's format")
    split = _byte_level(use_regex=True, add_prefix_space=source.prefix is not None)
    return tokenizer_text(source, bpe_model(source, source.merges), _byte_level(), pre_tokenizer=split)


def _byte_level(*, use_regex: bool = True, add_prefix_space: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


def tokenizer_text(
    source: Source,
    model: Mapping[str, Any],
    decoder: Mapping[str, Any],
    *,
    normalizer: Mapping[str, Any] | None = None,
    pre_tokenizer: Mapping[str, Any] | None = None,
) -> str:
    """The text of a tokenizer.json of these parts, with the added tokens, BOS and EOS of ``source``."""
    parts: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(token) for token in source.added],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": _around(source),
        "decoder": decoder,
        "model": model,
    }
    return json.dumps(parts, ensure_ascii=False, indent=2) + "\n"


def bpe_model(
    source: Source, merges: Iterable[str], *, unknown: str | None = None, byte_fallback: bool = False
) -> dict[str, Any]:
    """All tokens of ``source`` with these merges, each two parts and a space."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": byte_fallback,
        "ignore_merges": source.ignore_merges,
        "vocab": {text: index for index, text in enumerate(source.tokens) if text is not None},
        "merges": [merge.split(" ") for merge in merges],
    }


def _added(token: AddedToken) -> dict[str, Any]:
    flags = asdict(token)
    return {"id": flags.pop("id"), "content": flags.pop("text"), **flags}


def _around(source: Source) -> dict[str, Any]:
    """BOS and EOS around each of one or two texts, as far as they are added; both texts are of type 0."""
    ends = [
        [role] if wanted and role in source.special else []
        for role, wanted in (("bos", source.table.add_bos), ("eos", source.table.add_eos))
    ]
    special = {source.tokens[source.special[role]]: source.special[role] for roles in ends for role in roles}
    before, after = (
        [{"SpecialToken": {"id": source.tokens[source.special[role]], "type_id": 0}} for role in roles]
        for roles in ends
    )
    first, second = ([*before, {"Sequence": {"id": name, "type_id": 0}}, *after] for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": first,
        "pair": [*first, *second],
        "special_tokens": {
            text: {"id": text, "ids": [index], "tokens": [text]} for text, index in special.items()
        },
    }
