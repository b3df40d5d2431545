"""Patterns that divide words by Unicode's classes of letters, Tekken's and GPT-4o's, as llama.cpp has them.

It takes for a capital whatever letter is none of a to z, for a small one whatever is none of A to Z, and
knows no marks there (src/llama-vocab.cpp, LLAMA_VOCAB_PRE_TYPE_TEKKEN and _GPT4O). Hangul, Han and Kana are
in both classes on both sides, so only marks, and letters with two cases beyond ASCII, are divided otherwise.
"""

from __future__ import annotations

import json
import unicodedata
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from .token_settings import AddedToken
from .tokenizer import Encoder, added_pattern, cut_at
from .tokenizer_process import TokenizerProcess

_ROUGHLY = {
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]": r"(?:(?=[\p{L}])[^a-z])",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]": r"(?:(?=[\p{L}])[^A-Z])",
}
_CASED = ("Lu", "Ll", "Lt")


def concerned(text: str) -> bool:
    """Whether a text has a mark, or a letter beyond ASCII that is a capital or a small one."""
    if text.isascii():
        return False
    kinds = {unicodedata.category(letter) for letter in set(text) if not letter.isascii()}
    return any(kind[0] == "M" or kind in _CASED for kind in kinds)


def rough_encoder(
    process: TokenizerProcess, spec: Mapping[str, Any], added: Sequence[AddedToken], moved: Mapping[int, int]
) -> Encoder | None:
    """What the tokenizer would make of texts with llama.cpp's classes; None where its pattern has none.

    None, too, where it normalizes: the second tokenizer of the process is its model and its splits alone.
    """
    pre_tokenizer = _roughly(spec.get("pre_tokenizer"))
    if spec.get("normalizer") or pre_tokenizer == spec.get("pre_tokenizer"):
        return None
    stub = {"model": {"type": "BPE", "vocab": {}, "merges": []}, "pre_tokenizer": pre_tokenizer}
    process.make_bare(json.dumps(stub).encode())
    ids_of = {token.text: token.id for token in added}

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        pattern = added_pattern(added, parse_special)
        cut = [cut_at(pattern, text) for text in texts]
        stretches = process.encode([piece for pieces in cut for piece in pieces[::2]], which=1)
        found, at = [], iter(stretches)
        for pieces in cut:
            ids = array("i")
            for number, piece in enumerate(pieces):
                if number % 2:
                    ids.append(int(ids_of[piece] or 0))
                else:
                    ids.extend(moved.get(index, index) for index in next(at))
            found.append(ids)
        return found

    return encode


def _roughly(part: Any) -> Any:
    """A pre-tokenizer with llama.cpp's classes in its patterns."""
    if isinstance(part, list):
        return [_roughly(each) for each in part]
    if isinstance(part, dict):
        return {key: _roughly(value) for key, value in part.items()}
    if isinstance(part, str):
        for exact, rough in _ROUGHLY.items():
            part = part.replace(exact, rough)
    return part
