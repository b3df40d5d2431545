"""JSON with something wrong in it: values of other kinds and sizes, keys too many, too few or twice."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 31, 32, 33, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LARGE = (2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 32, 2**64 - 1)

PATTERNS = (
    "(a+)+$",
    "(?<=x",
    "[",
    r"\p{L}{1,1000}{1,1000}",
    "(?:)",
    "(x|y|",
    "\\",
    "(.*)*(.*)*(.*)*z",
    "(?=.)",
)


def _values(choose: random.Random, old: Any) -> Any:
    numbers = (*NUMBERS, *LARGE, -1, -(2**31), 2**64, 10**30, 0.5, -0.0, 1e-300, 1e308)
    if type(old) in (int, float) and choose.random() < 0.6:
        changed = (old + 1, old - 1, old * 2, -old, old * 1000, float(old), str(old), old / 2)
        return choose.choice((*numbers, *changed))
    if isinstance(old, str) and choose.random() < 0.5:
        changed = (old + "\0", old * 1000, old[:-1], old.upper(), "../" + old, "\ud55c" * 300, old + "\n")
        return choose.choice((*changed, "/etc/passwd", choose.choice(PATTERNS), "{{ x", "\u202e", ""))
    if isinstance(old, list) and old and choose.random() < 0.6:
        return choose.choice((old[:-1], old + old, old[::-1], [old], [None, *old[1:]], [*old, old[0]]))
    other = (None, True, False, "", "x", [], {}, [0], {"a": 0}, [[]], 0, -1, [None], {"type": "x"})
    return choose.choice(
        (*other, choose.choice(numbers), _Raw("NaN"), _Raw("1e999"), _Raw("-Infinity"), DEEP)
    )


class _Raw(str):
    """Text that stands in the JSON as it is."""


DEEP = _Raw("[" * 100_000 + "]" * 100_000)
_DIGITS = _Raw("9" * 5000)


def _places(value: Any, limit: int = 4000) -> list[tuple[Any, Any]]:
    """Containers and keys; of long lists (a vocabulary) the beginning and the end."""
    collected: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(collected) < limit:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        for key in keys if len(keys) < 60 else (*keys[:10], *keys[-10:]):
            collected.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return collected


def mutated_value(value: Any, choose: random.Random) -> Any:
    """The JSON value with something swapped, taken out, doubled or renamed; it is changed in place."""
    for _ in range(choose.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return choose.choice(([], None, 0, "", {"a": 1}))
        holder, key = choose.choice(places)
        match choose.randrange(8):
            case 0 | 1 | 2 | 3:
                holder[key] = _values(choose, holder[key])
            case 4:
                del holder[key]
            case 5 if isinstance(holder, dict):
                name = choose.choice((str(key) + "x", "", "\0", str(key).upper(), "__proto__"))
                holder[name] = holder.pop(key)
            case 6 if isinstance(holder, dict):  # the same key once more
                holder[_Raw(json.dumps(str(key)))] = _values(choose, holder[key])
            case 7:
                other, name = choose.choice(places)
                if name in (other if isinstance(other, dict) else range(len(other))):  # not taken out above
                    holder[key] = choose.choice((copy.deepcopy(other[name]), _DIGITS))
    return value


def dumped(value: Any) -> str:
    """As ``json.dumps``, with what is raw as it stands."""
    raw: list[str] = []

    def marked(each: Any) -> Any:
        if isinstance(each, _Raw):
            raw.append(each)
            return f"\ue000{len(raw) - 1}\ue001"
        if isinstance(each, dict):
            return {marked(key) if isinstance(key, _Raw) else key: marked(item) for key, item in each.items()}
        return [marked(item) for item in each] if isinstance(each, list) else each

    text = json.dumps(marked(value), ensure_ascii=False)
    for number, each in enumerate(raw):
        text = text.replace(f'"\ue000{number}\ue001"', each)
    return text


def _split(pattern: str, behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": False}


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


_GROWING = {"type": "Sequence", "normalizers": [_replace({"Regex": "."}, "$0" * 40)] * 6}
PARTS: dict[str, list[Any]] = {
    "normalizer": [
        *({"type": name} for name in ("NFC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel", "x")),
        *(
            _replace({"String": ""}, "x"),
            _replace({"Regex": ""}, "x"),
            _replace({"String": " "}, ""),
            _GROWING,
        ),
        *(
            _replace({"Regex": "(a+)+$"}, ""),
            _replace({"Regex": "("}, ""),
            {"type": "Prepend", "prepend": ""},
        ),
        {"type": "Prepend", "prepend": "x" * 10_000},
        {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
        {"type": "Precompiled", "precompiled_charsmap": "/////wAAAAAAAAAA"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
    ],
    "pre_tokenizer": [
        *(_split(pattern) for pattern in (*PATTERNS, "(\\p{L}+)*\\p{N}$", "(?:(?:a|b|ab)*)*c", ".")),
        *(_split("x", behavior) for behavior in ("Removed", "MergedWithNext", "Contiguous", "nothing")),
        *({"type": name} for name in ("Whitespace", "BertPreTokenizer", "UnicodeScripts", "WhitespaceSplit")),
        {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False},
        {"type": "FixedLength", "length": 0},
        {"type": "Digits", "individual_digits": True},
    ],
    "model": [
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0], ["b", 0.0]], "byte_fallback": False},
        {"type": "Unigram", "unk_id": 9, "vocab": [["a", float("1e308")]], "byte_fallback": True},
        {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}, "max_input_chars_per_word": 100},
        {"type": "WordLevel", "vocab": {}, "unk_token": "x"},
        {"type": "BPE", "vocab": {"a": 0, "b": 2**32 - 1}, "merges": []},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
    ],
    "decoder": [None, {"type": "x"}, _replace({"Regex": ""}, "x"), {"type": "CTC"}],
    "post_processor": [
        {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
        {"type": "BertProcessing", "sep": ["x", 2**32 - 1], "cls": ["y", 0]},
    ],
    "added_tokens": [
        [{"id": 2**31, "content": "x"}],
        [{"id": 0, "content": "", "special": True}],
        [{"id": 5, "content": "x" * 100_000, "special": False, "normalized": True, "lstrip": True}] * 3,
    ],
}
"""Parts of a tokenizer.json that hang, grow, crash or are only rare."""
