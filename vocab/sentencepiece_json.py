"""A tokenizer.json made of a SentencePiece model: for what cannot read tokenizer.model, as Transformers.js.

The tokenizers library has the same two algorithms, but not the same code around them, so what is made is
measured against SentencePiece, and given away only if it is equal. What it cannot follow is compiled
normalization where a letter has several marks: it looks at a letter with all its marks, SentencePiece at the
longest match. So it knows compositions of one character only; NFC makes the others, those of Hangul first.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..core.errors import VocabError
from ..core.input_files import quoted
from ..core.vocabulary import TokenType
from .exam import exam
from .tokenizer import META_SPACE, Source
from .tokenizer_json import bpe_model, tokenizer_text
from .tokenizer_process import TokenizerProcess

_NEVER = -10000.0
_SYNTAX = r"[\\^$.|?*+()\[\]{}]"  # re.escape escapes more, which JavaScript takes for errors
_MERGED = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)


def sentencepiece_tokenizer_json(source: Source) -> str:
    """The text of a tokenizer.json for a SentencePiece model, BPE or unigram; whether it is equal is open."""
    unknown = source.special.get("unknown")
    byte_fallback = TokenType.BYTE in source.types
    if source.kind == "sentencepiece unigram":
        model = {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": _scored(source),
            "byte_fallback": byte_fallback,
        }
    else:
        text = None if unknown is None else source.tokens[unknown]
        model = bpe_model(source, _merges(source), unknown=text, byte_fallback=byte_fallback)
        model["ignore_merges"] = bool(_defined(source))  # so that they are tokens without merges
    # SentencePiece is given what lies between them, so they are looked for in the text as it is
    added = tuple(replace(token, normalized=False) for token in source.added)
    source = replace(source, table=replace(source.table, added=added))
    return tokenizer_text(
        source, model, _decoder(source), normalizer=_normalizer(source), pre_tokenizer=_splits(source)
    )


def difference(text: str, source: Source) -> str | None:
    """Where a tokenizer.json and ``source`` part, in words; None where they are equal on all texts asked."""
    questions = exam(source)
    asked = questions.texts
    process = TokenizerProcess("tokenizers", "tokenizer.json")
    try:
        process.open(text.encode("utf-8", "surrogatepass"))
        ids = process.encode(asked)
    except VocabError as error:
        return error.message
    same = source.equally_good or (lambda one, other: False)
    pairs = zip(ids, questions.parsed, strict=True)
    apart = [at for at, (got, right) in enumerate(pairs) if got != right and not same(got, right)]
    if not apart:
        return None
    return f"other ids for {len(apart)} of {len(asked)} texts, first for {quoted(asked[apart[0]][:60])}"


def _scored(source: Source) -> list[tuple[str, float]]:
    """Pieces and scores by id, up to the last that is not an added token.

    What SentencePiece never finds in a text as it is spelled gets a score nothing can be as bad as.
    """
    added = {token.id for token in source.added} - {source.special.get("unknown")}
    size = max((index + 1 for index in range(source.size) if index not in added), default=0)
    never = (TokenType.BYTE, TokenType.UNUSED)
    rows = zip(source.tokens[:size], source.scores, source.types, strict=False)
    return [
        (text or f"[{index}]", _NEVER if kind in never else score)
        for index, (text, score, kind) in enumerate(rows)
    ]


def _merges(source: Source) -> Iterator[str]:
    """All pairs that make a piece, the best piece first: SentencePiece merges whatever makes it."""
    pieces = {
        text: source.scores[index]
        for index, (text, kind) in enumerate(zip(source.tokens, source.types, strict=True))
        if text is not None and kind in _MERGED
    }
    lengths = sorted({len(text) for text in pieces} - {0})  # a stranger's piece may have a million letters
    for text in sorted(pieces, key=lambda text: -pieces[text]):
        for at in (length for length in lengths if length < len(text)):
            if text[:at] in pieces and text[at:] in pieces:
                yield f"{text[:at]} {text[at:]}"


def _normalizer(source: Source) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    if source.charsmap:
        charsmap = base64.b64encode(source.charsmap).decode()
        steps += [{"type": "Precompiled", "precompiled_charsmap": charsmap}, {"type": "NFC"}]
    if source.collapses_spaces:
        # Anchors are of lines in the library's dialect, of texts in JavaScript's; this is of texts in both.
        ends = rf"(?<![\s\S]) +|[ {META_SPACE}]+(?![\s\S])"
        steps += [_replaced({"Regex": ends}, ""), _replaced({"Regex": " {2,}"}, " ")]
    if source.prefix is not None and source.prefix.each:
        steps.append({"type": "Prepend", "prepend": META_SPACE})
    steps.append(_replaced({"String": " "}, META_SPACE))
    return {"type": "Sequence", "normalizers": steps}


def _replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _splits(source: Source) -> dict[str, Any] | None:
    """A space before the very start only, also where one is there already; pieces defined by users apart.

    No normalizer knows where a text starts, and Metaspace adds nothing to what begins with its own sign: so
    one whose sign is the plain space, of which none is left, adds it, and another gives it the right sign.
    """
    steps: list[dict[str, Any]] = []
    if source.prefix is not None and not source.prefix.each:
        steps = [
            {"type": "Metaspace", "replacement": sign, "prepend_scheme": scheme, "split": False}
            for sign, scheme in ((" ", "first"), (META_SPACE, "never"))
        ]
    defined = _defined(source)
    if defined:
        longest_first = sorted(defined, key=len, reverse=True)
        pattern = "|".join(re.sub(_SYNTAX, r"\\\g<0>", text) for text in longest_first)
        steps.append(
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        )
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _defined(source: Source) -> list[str]:
    """Pieces a user has defined, which SentencePiece finds first; those cut out of the text are not meant."""
    added = {token.text for token in source.added}
    return [
        text
        for text, kind in zip(source.tokens, source.types, strict=True)
        if text is not None and kind is TokenType.USER_DEFINED and text not in added
    ]


def _decoder(source: Source) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        _replaced({"String": META_SPACE}, " "),
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if source.prefix is not None:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}
