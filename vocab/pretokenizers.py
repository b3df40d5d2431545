"""How llama.cpp's named pre-tokenizers split text, and what a pre-tokenizer of tokenizer.json does.

Both in one notation: a structure is a tuple of splits, one after the other, each a regular expression whose
matches stand alone. The table is read off src/llama-vocab.cpp (the switch over LLAMA_VOCAB_PRE_TYPE_*) and
src/unicode.cpp of llama.cpp as of llama-cpp-python 0.3.36; one name stands for all names that behave alike.
Which name is right is never decided here: the nearest are tried first, and measured.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DIGIT = r"\p{N}"
DIGITS = r"\p{N}+"
DIGITS_3 = r"\p{N}{1,3}"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)"
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
LLAMA_3 = f"{_CONTRACTIONS}|{_WORD}|{DIGITS_3}|{_SYMBOLS}|{_SPACES}"
QWEN_2 = f"{_CONTRACTIONS}|{_WORD}|{DIGIT}|{_SYMBOLS}|{_SPACES}"
_QWEN_35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = r"[^\r\n\p{L}\p{N}]?"
_TEKKEN = (
    f"{_CASED}{_UPPER}*{_LOWER}+|{_CASED}{_UPPER}+{_LOWER}*" + r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + _SPACES
)
_GPT_4O = (
    f"{_CASED}{_UPPER}*{_LOWER}+{_CONTRACTIONS}?|{_CASED}{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
    + _SPACES
)
_DEEPSEEK_3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)
_CJK = "[一-龥\u3040-ゟ゠-ヿ]+"
_BLOOM = " ?[^(\\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class PreTokenizer:
    """A value of ``tokenizer.ggml.pre`` and what llama.cpp does for it."""

    name: str
    splits: tuple[str, ...]
    ignore_merges: bool = False


PRE_TOKENIZERS = (
    PreTokenizer("gpt-2", (GPT_2,)),
    PreTokenizer("starcoder", (DIGIT, GPT_2)),
    PreTokenizer("llama-bpe", (LLAMA_3,), ignore_merges=True),
    PreTokenizer("dbrx", (LLAMA_3,)),
    PreTokenizer("qwen2", (QWEN_2,)),
    PreTokenizer("qwen35", (_QWEN_35,)),
    PreTokenizer("gpt-4o", (_GPT_4O,)),
    PreTokenizer("tekken", (_TEKKEN,), ignore_merges=True),
    PreTokenizer("deepseek-v3", (DIGITS_3, _CJK, _DEEPSEEK_3)),
    PreTokenizer("minicpm5", (DIGITS_3, LLAMA_3.replace(DIGITS_3, DIGITS)), ignore_merges=True),
    PreTokenizer("ufakzeka", (QWEN_2.removeprefix(f"{_CONTRACTIONS}|"),)),
    PreTokenizer("laguna", (r"[^\n]+|[\n]+", QWEN_2)),
    PreTokenizer("seed-coder", (QWEN_2.replace(_SYMBOLS, r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    PreTokenizer(
        "bailingmoe",
        ("'(?i:[sdmt]|ll|ve|re)|" + _WORD + "|" + DIGIT + "|" + _SYMBOLS + r"|\s*[\r\n]|\s+(?!\S)",),
    ),
    PreTokenizer(
        "exaone-moe",
        (
            _CONTRACTIONS
            + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?"
            + r"|\s*[\r\n]|\s+(?!\S)",
        ),
    ),
    PreTokenizer("falcon", (r"[\p{P}\$\+<=>\^~\|`]+", GPT_2, "[0-9][0-9][0-9]")),
    PreTokenizer("default", (r"[\p{P}\$\+<=>\^~\|]+", GPT_2, DIGITS, "[0-9][0-9][0-9]")),
    PreTokenizer("deepseek-coder", (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", DIGIT)),
    PreTokenizer(
        "spark2_5", (DIGITS_3, _CJK, _DEEPSEEK_3.replace(r"+[\r\n]*|\s*[\r\n]+", r"+|[\r\n]"), DIGIT)
    ),
    PreTokenizer(
        "youtu",
        (
            "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|" + _CJK,
            _GPT_4O.replace(DIGITS_3, DIGIT),
        ),
        ignore_merges=True,
    ),
    PreTokenizer("tiny_aya", (r"\d{1,3}(?=(?:\d{3})*\b)", _GPT_4O)),
    PreTokenizer("poro-chat", (_BLOOM,)),
    PreTokenizer("viking", (_BLOOM, DIGIT)),
    PreTokenizer("superbpe", (DIGITS, r"(?=(\d{3})+(?!\d))")),
    PreTokenizer(
        "jais-2",
        (
            LLAMA_3.removesuffix(r"|\s+(?!\S)")
            + "".join(rf"|\s{{{count}}}(?!\S)" for count in (512, 256, 128, 64, 32, 16, 8, 4))
            + r"|\s{1,2}(?!\S)|\s{1}",
        ),
    ),
)
MAX_CANDIDATES = 8
# An escaped character, a class, or a quantifier (group 1) with a plus behind it.
_POSSESSIVE = re.compile(r"\\p\{\w+\}|\\.|\[(?:\\.|[^\]\\])*\]|([?*+}])\+")


def ranked(splits: tuple[str, ...], ignore_merges: bool) -> tuple[PreTokenizer, ...]:
    """The pre-tokenizers worth trying: those of the same structure first, then the nearest others.

    Nearness is the share of regular-expression alternatives two structures have in common.
    """
    wanted = _alternatives(splits)

    def distance(pre: PreTokenizer) -> tuple[float, bool]:
        if pre.splits == splits:
            return -1.0, pre.ignore_merges != ignore_merges
        has = _alternatives(pre.splits)
        return 1 - len(wanted & has) / max(len(wanted | has), 1), pre.ignore_merges != ignore_merges

    # Where one of the very structure fails, something else is the matter, and others seldom help.
    few = MAX_CANDIDATES // 2 if is_known(splits) else MAX_CANDIDATES
    return tuple(sorted(PRE_TOKENIZERS, key=distance))[:few]


def is_known(splits: tuple[str, ...]) -> bool:
    """Whether llama.cpp has a pre-tokenizer of exactly that structure."""
    return any(pre.splits == splits for pre in PRE_TOKENIZERS)


def structure(pre_tokenizer: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The splits a pre-tokenizer of tokenizer.json makes, in order.

    What has no regular expression of its own stands by its type's name, so it equals nothing in the table.
    """
    return tuple(split for step in steps(pre_tokenizer) for split in _splits(step))


def steps(component: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """A normalizer, pre-tokenizer or decoder of tokenizer.json as a flat list, sequences opened."""
    if not isinstance(component, Mapping):
        return []
    if component.get("type") != "Sequence":
        return [component]
    keys = ("pretokenizers", "normalizers", "decoders")
    inner: Sequence[Any] = next((component[key] for key in keys if isinstance(component.get(key), list)), [])
    return [step for part in inner if isinstance(part, Mapping) for step in steps(part)]


def _splits(step: Mapping[str, Any]) -> tuple[str, ...]:
    kind = step.get("type")
    if kind == "ByteLevel":
        return (GPT_2,) if step.get("use_regex", True) else ()
    if kind == "Digits":
        return (DIGIT if step.get("individual_digits") else DIGITS,)
    if kind == "Split":
        return (_split_regex(step),)
    if kind == "Metaspace" and not step.get("split", True):
        return ()
    return (str(kind),)


def _split_regex(step: Mapping[str, Any]) -> str:
    pattern = step.get("pattern")
    text = "?"
    if isinstance(pattern, Mapping):
        text = str(pattern["Regex"]) if "Regex" in pattern else re.escape(str(pattern.get("String", "")))
    behavior, invert = step.get("behavior"), bool(step.get("invert"))
    if (behavior, invert) in (("Isolated", False), ("Removed", True)):
        return canonical(text)
    return f"{behavior}{' inverted' if invert else ''}: {text}"


def canonical(regex: str) -> str:
    r"""A regular expression in the spelling of the table.

    Characters after a backslash are written out, ``{1}`` and possessive quantifiers (which change nothing in
    patterns of this kind) go, and so does a last ``\s+``: what matches nothing stands alone anyway.
    """
    text = regex.replace("\r", r"\r").replace("\n", r"\n").replace(r"\p{N}{1}", r"\p{N}")
    text = _POSSESSIVE.sub(lambda match: match[1] or match[0], text)
    text = text.replace("(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", _CONTRACTIONS)
    text = text.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _CONTRACTIONS)
    return text.removesuffix(r"|\s+") if text.endswith(r"\s+(?!\S)|\s+") else text


def _alternatives(splits: tuple[str, ...]) -> frozenset[str]:
    return frozenset(alternative for split in splits for alternative in _top_level(split))


def _top_level(regex: str) -> list[str]:
    """The alternatives of a regular expression outside all brackets."""
    alternatives, depth, start, position, in_class = [], 0, 0, 0, False
    while position < len(regex):
        character = regex[position]
        if character == "\\":
            position += 1
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        elif character in "()":
            depth += 1 if character == "(" else -1
        elif character == "|" and depth == 0:
            alternatives.append(regex[start:position])
            start = position + 1
        position += 1
    return [*alternatives, regex[start:]]
