"""The token table of a tokenizer of the `tokenizers` library, and what its special tokens are for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..core.errors import VocabError
from ..core.input_files import quoted
from ..core.model import Note
from ..core.vocabulary import TokenType
from .token_settings import MAX_TOKENS, AddedToken, TokenSettings
from .tokenizer import Kind, TokenTable
from .tokenizer_process import TokenizerProcess

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def token_table(
    process: TokenizerProcess,
    kind: Kind,
    unknown: str | None,
    settings: TokenSettings,
    vocabulary: dict[str, int] | None = None,
) -> tuple[TokenTable, dict[int, int]]:
    """The table, and the ids the library gives that the checkpoint's files say otherwise.

    The tokenizer gets the tokens other files name besides its own. ``vocabulary`` is what it was opened with,
    where that is all it has; the library is asked else. Raises VocabError where ids collide.
    """
    vocabulary = process.vocabulary() if vocabulary is None else vocabulary
    moved = _add_missing(process, vocabulary, settings)
    added = tuple(
        AddedToken(text, moved.get(token_id, token_id), *flags) for token_id, text, *flags in process.added()
    )
    ids = {text: moved.get(index, index) for text, index in vocabulary.items()} if moved else vocabulary
    tokens = _tokens(ids)
    special, missing = _special(settings.roles, unknown, ids)
    add_bos, add_eos, special, more = _bos_eos(process, vocabulary, settings, special)
    types = _types(kind, tokens, added, unknown)
    return TokenTable(tokens, types, added, special, add_bos, add_eos, (*missing, *more)), moved


def _add_missing(
    process: TokenizerProcess, vocabulary: dict[str, int], settings: TokenSettings
) -> dict[int, int]:
    """Add tokens other files name, also to ``vocabulary``; the library's ids where files say others."""
    present = {text for _, text, *_ in process.added()}
    texts = dict(zip(vocabulary.values(), vocabulary, strict=True))
    moved: dict[int, int] = {}
    for token in settings.added:
        if token.text in present or not token.text:
            continue
        known = vocabulary.get(token.text)
        if known is None and token.id is None:
            continue  # named as a role, but without an id: transformers would invent one beyond the rows
        if known is not None and token.id is not None and known != token.id:
            raise VocabError(
                f"{quoted(token.text)} has the id {known} in the tokenizer's vocabulary, but {token.id} in"
                " added_tokens.json or tokenizer_config.json"
            )
        if known is None and token.id is not None and token.id in texts:
            raise VocabError(
                f"{quoted(token.text)} is given the id {token.id}, which is {quoted(texts[token.id])} "
                "in the tokenizer's vocabulary"
            )
        flags = {name: getattr(token, name) for name in ("normalized", "lstrip", "rstrip", "single_word")}
        given = process.add(token.text, special=token.special, flags=flags)
        if given is None:
            continue
        vocabulary[token.text], texts[given] = given, token.text
        if token.id is not None and given != token.id:
            moved[given] = token.id
    return moved


def _tokens(ids: Mapping[str, int]) -> tuple[str | None, ...]:
    largest = max(ids.values(), default=-1)
    if not 0 <= largest < MAX_TOKENS:
        raise VocabError(f"the tokenizer's largest id is {largest}, expected 0 to {MAX_TOKENS - 1}")
    tokens: list[str | None] = [None] * (largest + 1)
    for text, place in ids.items():
        if tokens[place] is not None:
            raise VocabError(f"{quoted(text)} and {quoted(tokens[place])} both have the id {place}")
        tokens[place] = text
    return tuple(tokens)


def _types(
    kind: Kind, tokens: Sequence[str | None], added: Sequence[AddedToken], unknown: str | None
) -> tuple[TokenType, ...]:
    normal, unused = TokenType.NORMAL, TokenType.UNUSED
    types = [unused if text is None else normal for text in tokens]
    if kind in ("byte-fallback bpe", "sentencepiece unigram"):
        for token_id, text in enumerate(tokens):
            if text is not None and BYTE_TOKEN.fullmatch(text):
                types[token_id] = TokenType.BYTE
    for token in added:
        if token.id is not None:
            types[token.id] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
            if kind not in ("byte-level bpe", "wordpiece") and token.special and token.text == unknown:
                types[token.id] = TokenType.UNKNOWN
    return tuple(types)


def _special(
    roles: Mapping[str, str], unknown: str | None, ids: Mapping[str, int]
) -> tuple[dict[str, int], tuple[Note, ...]]:
    """Ids by role, and notes on tokens that are named but not there."""
    named = dict(roles)
    if unknown is not None:
        named.setdefault("unknown", unknown)
    special = {role: ids[text] for role, text in named.items() if text in ids}
    return special, tuple(
        Note(
            "missing-special-token", f"the {role} token {quoted(text)} is not in the vocabulary", warning=True
        )
        for role, text in named.items()
        if text and text not in ids
    )


def _bos_eos(
    process: TokenizerProcess,
    vocabulary: Mapping[str, int],
    settings: TokenSettings,
    special: dict[str, int],
) -> tuple[bool, bool, dict[str, int], tuple[Note, ...]]:
    """Whether BOS and EOS are added: as tokenizer_config.json says, else as the post-processor does."""
    before, after = _surroundings(process)
    special = dict(special)
    if len(before) == 1:
        special.setdefault("bos", before[0])
    if len(after) == 1:
        special.setdefault("eos", after[0])
    notes = []
    measured = []
    if len(before) == 1 and before == [special.get("eos")]:
        special["bos"] = before[0]  # fairseq's decoders begin every text with EOS, whatever is named BOS
    for role, ids, setting in (("bos", before, settings.add_bos), ("eos", after, settings.add_eos)):
        does = bool(ids) and ids == [special.get(role)]
        if ids and not does:
            spelled = {token_id: text for text, token_id in vocabulary.items() if token_id in ids}
            texts = " ".join(quoted(spelled.get(token_id)) for token_id in ids)
            notes.append(
                Note(
                    "post-processor",
                    f"the post-processor adds {texts} in place of {role}; this is not copied",
                    True,
                )
            )
        if setting is not None and setting != does and (does or ids == []):
            does_text = "adds" if does else "does not add"
            notes.append(
                Note(
                    f"add-{role}",
                    f"tokenizer_config.json sets add_{role}_token {str(setting).lower()}, while the tokenizer"
                    f" {does_text} {role.upper()} by itself; the setting is written",
                )
            )
        measured.append(does if setting is None else setting)
    return measured[0], measured[1], special, tuple(notes)


def _surroundings(process: TokenizerProcess) -> tuple[list[int], list[int]]:
    """The ids the post-processor puts before and after a text."""
    for inner, full in process.around(("a", "가", "1")):
        for start in range(len(full) if inner else 0):
            if full[start : start + len(inner)] == inner:
                return full[:start], full[start + len(inner) :]
    return [], []
