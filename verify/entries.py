"""The vocabulary's entries one by one: texts, types, scores and merges of a file against the expected ones.

Texts no tokenizer run can show to be wrong (reserved tokens, rows without a token) are found here, and what
parity finds gets its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..core.language import phrase, phrases
from ..core.vocabulary import SPM, TokenType, Vocab
from ..vocab.decoding import token_bytes
from ..vocab.end_of_turn import KNOWN_END_OF_GENERATION
from ..vocab.in_gguf import PREFIX, MalformedKey
from ..vocab.tokenizer import META_SPACE, Source
from .proof import Finding
from .token_text import is_byte_level, readable, shown_text

_TOKENS, _TYPES = PREFIX + "tokens", PREFIX + "token_type"
_SCORES, _MERGES = PREFIX + "scores", PREFIX + "merges"
_FEW = 16
_SHIFTS = (-4, -3, -2, -1, 1, 2, 3, 4)
_PLACEHOLDER = re.compile(r"[\[<].*[\]>]|.*(unused|reserved|pad|extra|dummy).*|", re.IGNORECASE | re.DOTALL)
_UNMATCHED = (TokenType.UNUSED, TokenType.CONTROL)

# Types between which nothing changes but how text that spells the token is read and shown.
_NEAR = frozenset({TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN})


def malformed(faults: Iterable[MalformedKey], *, lists: bool) -> list[Finding]:
    """Keys of a wrong type: those of the lists of entries, which are the tokens part's, or all others."""
    return [
        Finding(
            fault.key,
            phrase("the file has {found} for {key}, but llama.cpp expects {expected}").of(
                found=fault.found, key=fault.key, expected=fault.expected
            ),
            fault.expected,
            fault.found,
        )
        for fault in faults
        if lists == (fault.key in (_TOKENS, _TYPES, _SCORES, _MERGES))
    ]


def compare_entries(actual: Vocab, expected: Vocab, source: Source, *, strict: bool = False) -> list[Finding]:
    """All differences, gathered: exchanged and shifted tokens are one finding each.

    ``strict`` is for files of this very kconv, which have to be equal in all. In others, rows without a token
    may be called anything, tokens the tokenizer never makes may have their texts, and scores and merges that
    are a matter of choice are left to parity.
    """
    findings = _duplicates(actual)
    findings += _texts(actual, expected, source, strict)
    findings += _types(actual, expected, source, strict)
    if actual.model == expected.model == SPM:
        findings += _scores(actual, expected, source, strict)
    if SPM not in (actual.model, expected.model):
        findings += _merges(actual, expected, source, strict)
    return findings


def check_lengths(actual: Vocab, expected: Vocab, rows: int | None) -> list[Finding]:
    """Lists as long as the vocabulary, and that as long as the embedding has rows (None: not known)."""
    findings = []
    if actual.size != expected.size and rows in (None, actual.size):
        message = phrase("the file has {found} tokens, but the checkpoint has {expected}").of(
            found=actual.size, expected=expected.size
        )
        findings.append(Finding(_TOKENS, message, str(expected.size), str(actual.size)))
    if rows is not None and actual.size != rows:
        message = phrase("the file has {found} tokens for {rows} embedding rows: llama.cpp refuses it").of(
            found=actual.size, rows=rows
        )
        findings.append(Finding(_TOKENS, message, str(rows), str(actual.size)))
    for key, values in ((_TYPES, actual.types), (_SCORES, actual.scores)):
        if values and len(values) != actual.size:
            short = len(values) < actual.size
            effect = phrase("llama.cpp refuses the file") if short else phrase("llama.cpp ignores the rest")
            message = phrase("{key} has {count} entries for {found} tokens: {effect}").of(
                key=key, count=len(values), found=actual.size, effect=effect
            )
            findings.append(Finding(key, message, str(actual.size), str(len(values)), grave=short))
    return findings


def _duplicates(actual: Vocab) -> list[Finding]:
    counts = Counter(text for text in actual.tokens if text)
    twice = [text for text, count in counts.items() if count > 1]
    if not twice:
        return []
    ids = [index for index, text in enumerate(actual.tokens) if text == twice[0]][:2]
    more = phrase(", and {count} more texts appear twice").of(count=len(twice) - 1) if len(twice) > 1 else ""
    message = phrase(
        "tokens {first} and {second} have the same text {text}{more}: llama.cpp aborts on this"
    ).of(first=ids[0], second=ids[1], text=shown_text(twice[0]), more=more)
    return [Finding(_TOKENS, message, phrase("every text once"), shown_text(twice[0]))]


# Texts


def _texts(actual: Vocab, expected: Vocab, source: Source, strict: bool) -> list[Finding]:
    pairs = zip(actual.tokens, expected.tokens, strict=False)
    different = [index for index, (one, other) in enumerate(pairs) if one != other]
    grave: list[int] = []
    light: list[int] = []
    for index in different:
        weight = _weight(index, actual, expected, source, strict)
        if weight is not None:
            (grave if weight else light).append(index)
    return [*_wrong_texts(grave, actual, expected, source), *_other_texts(light, actual, expected, source)]


def _weight(index: int, actual: Vocab, expected: Vocab, source: Source, strict: bool) -> bool | None:
    """Whether another text is grave; None where it is as good as the expected one."""
    text, wanted = actual.tokens[index], expected.tokens[index]
    own = source.tokens[index] if index < source.size else None
    if strict:
        return True
    if own is None:  # a row without a token: harmless unless some text might be read as it
        harmless = _type(actual, index) in _UNMATCHED or _PLACEHOLDER.fullmatch(text)
        return not harmless
    if text.partition("\0")[0] == own.partition("\0")[0]:
        return None  # the tokenizer's own text, where the conversion put another on purpose
    if text.replace(META_SPACE, " ") == wanted.replace(META_SPACE, " "):
        return _type(actual, index) is not TokenType.USER_DEFINED
    return True


def _type(vocab: Vocab, index: int) -> TokenType:
    return vocab.types[index] if index < len(vocab.types) else TokenType.NORMAL


def _wrong_texts(ids: Sequence[int], actual: Vocab, expected: Vocab, source: Source) -> list[Finding]:
    shift = _shift(ids, actual, expected)
    if shift:
        late = phrases("{count} place late", "{count} places late", abs(shift))
        way = late if shift > 0 else phrases("{count} place early", "{count} places early", abs(shift))
        message = phrase(
            "from token {first} on, texts are {way}: {count} tokens have the text of another one"
        ).of(first=ids[0], way=way, count=len(ids))
        return [_text_finding(ids[0], actual, expected, source, message)]
    places = {expected.tokens[index]: index for index in ids}
    findings = []
    done: set[int] = set()
    for index in ids:
        if index in done:
            continue
        partner = places.get(actual.tokens[index])
        has, should = _both(index, actual, expected, source)
        message = phrase("token {index} has the text {has}, but {should} in the checkpoint's tokenizer").of(
            index=index, has=has, should=should
        )
        if partner is not None and actual.tokens[partner] == expected.tokens[index]:
            done.add(partner)
            message = phrase("tokens {index} {should} and {partner} {has} are swapped").of(
                index=index, should=should, partner=partner, has=has
            )
        findings.append(_text_finding(index, actual, expected, source, message))
    return findings


def _text_finding(
    index: int, actual: Vocab, expected: Vocab, source: Source, message: str, *, grave: bool = True
) -> Finding:
    has, should = _both(index, actual, expected, source)
    return Finding(phrase("token {number}").of(number=index), message, should, has, grave=grave)


def _both(index: int, actual: Vocab, expected: Vocab, source: Source) -> tuple[str, str]:
    """The file's text of a token and the expected one, as they stand where they would look alike."""
    pieces = (actual.tokens[index], expected.tokens[index])
    has, should = (readable(piece, byte_level=is_byte_level(source)) for piece in pieces)
    return (has, should) if has != should else (shown_text(pieces[0]), shown_text(pieces[1]))


def _shift(ids: Sequence[int], actual: Vocab, expected: Vocab) -> int:
    """By how many places most of many wrong tokens are off, 0 if there is no such number."""
    if len(ids) < _FEW:
        return 0
    for shift in _SHIFTS:
        pairs = ((actual.tokens[index], index - shift) for index in ids)
        fitting = sum(0 <= at < expected.size and text == expected.tokens[at] for text, at in pairs)
        if fitting > 0.9 * len(ids):
            return shift
    return 0


def _other_texts(ids: Sequence[int], actual: Vocab, expected: Vocab, source: Source) -> list[Finding]:
    if not ids:
        return []
    who = phrases("{count} token has", "{count} tokens have", len(ids))
    message = phrase(
        "{who} another name in the file, first token {first}; this does not affect how any text is read"
    ).of(who=who, first=ids[0])
    return [_text_finding(ids[0], actual, expected, source, message, grave=False)]


# Types


def _types(actual: Vocab, expected: Vocab, source: Source, strict: bool) -> list[Finding]:
    grave: dict[tuple[TokenType, TokenType], list[int]] = {}
    light: dict[tuple[TokenType, TokenType], list[int]] = {}
    for index, (one, other) in enumerate(zip(actual.types, expected.types, strict=False)):
        if one is not other:
            heavy = strict or _type_matters(index, one, other, expected, source)
            (grave if heavy else light).setdefault((one, other), []).append(index)
    findings = []
    for kinds, heavy in ((grave, True), (light, False)):
        for (one, other), ids in kinds.items():
            is_, should = one.name.lower().replace("_", " "), other.name.lower().replace("_", " ")
            token = f"{ids[0]} {readable(expected.tokens[ids[0]], byte_level=is_byte_level(source))}"
            more = len(ids) - 1
            who = phrase("token {token} has").of(token=token)
            who = phrase("token {token} and {count} more have").of(token=token, count=more) if more else who
            message = phrase("{who} type {given} instead of {should}: {effect}").of(
                who=who, given=is_, should=should, effect=_effect(one, other)
            )
            where = phrase("token {number}").of(number=ids[0])
            findings.append(Finding(where, message, should, is_, grave=heavy))
    return findings


def _type_matters(index: int, one: TokenType, other: TokenType, expected: Vocab, source: Source) -> bool:
    own = source.tokens[index] if index < source.size else None
    if own is None or own in KNOWN_END_OF_GENERATION:  # no token; or llama.cpp makes it control by its text
        return False
    silenced = expected.tokens[index] != own
    if silenced or {one, other} <= _NEAR:
        return False
    if other is TokenType.NORMAL and one is TokenType.UNUSED:
        return True
    if other is TokenType.NORMAL and one is TokenType.USER_DEFINED:  # shown without its symbols put back
        return token_bytes(source, index) != own.encode("utf-8", "backslashreplace")
    # Pieces SentencePiece calls unused or user defined are ordinary ones to some converters; parity decides.
    return {one, other} not in (
        {TokenType.NORMAL, TokenType.UNUSED},
        {TokenType.NORMAL, TokenType.USER_DEFINED},
    )


def _effect(one: TokenType, other: TokenType) -> str:
    if one in _UNMATCHED and other is TokenType.NORMAL:  # llama_vocab::impl::token_to_piece
        return phrase("its text would be missing from answers")
    if one is TokenType.USER_DEFINED and other is TokenType.NORMAL:
        return phrase("it is matched first in texts, and shown in answers as spelled in the vocabulary")
    if other is TokenType.CONTROL and one is TokenType.NORMAL:
        return phrase("it would show up in answers, and not be recognized in prompts")
    if other is TokenType.BYTE:
        return phrase("characters without a token of their own could not be written")
    return phrase("texts that contain it are read and shown differently")


# Scores and merges


def _scores(actual: Vocab, expected: Vocab, source: Source, strict: bool) -> list[Finding]:
    """Only the order counts, among pieces that are joined: llm_tokenizer_spm_session."""
    size = min(actual.size, expected.size, len(actual.types))
    mine = np.zeros(size) if not actual.scores else np.array(actual.scores[:size], np.float32)
    theirs = np.array(expected.scores[:size], np.float32)
    if len(mine) < size or len(theirs) < size:
        return []  # said by the lengths
    normal = [index for index in range(size) if expected.types[index] is TokenType.NORMAL]
    one, other = mine[normal], theirs[normal]
    if np.array_equal(one, other):
        return []
    ranks = [np.unique(values, return_inverse=True)[1] for values in (one, other)]
    own = source.kind.startswith("sentencepiece")
    if np.array_equal(ranks[0], ranks[1]) and not strict:
        return []
    places = np.flatnonzero(one != other)
    first = normal[int(places[0])]
    has, should = f"{float(mine[first]):g}", f"{float(theirs[first]):g}"
    whose = phrase("the checkpoint's") if own else phrase("those made from its merges")
    token = f"{first} {readable(expected.tokens[first], byte_level=False)}"
    message = phrase(
        "scores of {count} tokens differ from {whose}, first token {token}: pieces of words would "
        "be merged in another order"
    ).of(count=len(places), whose=whose, token=token)
    return [Finding(_SCORES, message, should, has, grave=own or strict)]


def _merges(actual: Vocab, expected: Vocab, source: Source, strict: bool) -> list[Finding]:
    """Their order decides which pieces of a word are joined first."""
    mine, theirs = actual.merges, expected.merges
    if mine == theirs:
        return []
    places: Mapping[str, int] = {merge: rank for rank, merge in enumerate(theirs)}
    known = set(mine)
    missing = [merge for merge in theirs if merge not in known]
    extra = [merge for merge in mine if merge not in places]
    rank = next(
        (at for at, (one, other) in enumerate(zip(mine, theirs, strict=False)) if one != other),
        min(len(mine), len(theirs)),
    )
    has = shown_text(mine[rank]) if rank < len(mine) else phrase("missing")
    should = shown_text(theirs[rank]) if rank < len(theirs) else phrase("missing")
    if missing or extra:
        what = phrase("{missing} merges missing, {extra} not in the checkpoint")
        what = what.of(missing=len(missing), extra=len(extra))
    else:
        moved = sum(one != other for one, other in zip(mine, theirs, strict=False))
        what = phrase("{count} merges have another rank").of(count=moved)
    message = phrase("{what}, first at rank {rank}: pieces of words would be merged in another order").of(
        what=what, rank=rank
    )
    grave = strict or source.kind == "byte-level bpe"  # elsewhere the list is a matter of choice
    return [Finding(f"{_MERGES}[{rank}]", message, should, has, grave=grave)]
