"""ByT5's vocabulary: every byte is a token of its own, id = byte + 3.

Ids 0 to 2 are ``<pad>``, ``</s>`` and ``<unk>``, 3 to 258 the bytes, from 259 on ``<extra_id_0>``, … and what
else was added. Models were trained to fill masks that are not the ``<extra_id_N>`` but 258, 257, 256, …: the
bytes 0xFF, 0xFE, …, which no UTF-8 text holds (transformers, docs/source/en/model_doc/byt5.md).

llama.cpp has no such tokenizer. A byte-level BPE of its ``gpt2`` kind whose tokens are the symbols of single
bytes, without a merge that could ever join two, is the same function.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import VocabError
from ..core.input_files import quoted, read_json
from ..core.model import Note
from ..core.vocabulary import TokenType
from .decoding import byte_symbols
from .describe import describe
from .token_settings import MAX_TOKENS, AddedToken, TokenSettings
from .tokenizer import Encoder, Kind, Source, TokenTable, added_pattern

KIND: Kind = "utf-8 bytes"
OFFSET = 3
FIRST_ADDED = OFFSET + 256
EXTRA_IDS = 125
NEVER_FIRES = "ÿ ÿ"
"""The one merge, for llama.cpp's loader wants a list of them: the symbols of the bytes 0xFF 0xFF."""

_CLASS = "ByT5Tokenizer"
_MISNAMED = ("T5Tokenizer", "T5TokenizerFast")
_ROWS = FIRST_ADDED + EXTRA_IDS
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")
_EXTRA_ID = re.compile(r"<extra_id_\d+>")
_BASE = (("padding", "<pad>", "pad_token"), ("eos", "</s>", "eos_token"), ("unknown", "<unk>", "unk_token"))
"""Roles, texts and keys of the ids 0, 1, 2."""


def is_byte_tokenizer(checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint's tokenizer is ByT5's.

    The class says so, in tokenizer_config.json or without one in config.json. One of the first ByT5 folders
    names T5Tokenizer by mistake: believed only where there is a file for it to read, or the number of rows
    is not ByT5's 384. Raises CheckpointError where tokenizer_config.json is malformed.
    """
    class_name = _class(checkpoint)
    return class_name == _CLASS or (class_name in _MISNAMED and _looks_misnamed(checkpoint))


def _class(checkpoint: Checkpoint) -> object:
    config = read_json(checkpoint.folder, "tokenizer_config.json") or {}
    return config.get("tokenizer_class") or checkpoint.config.get("tokenizer_class")


def _looks_misnamed(checkpoint: Checkpoint) -> bool:
    if any(checkpoint.has(name) for name in _VOCABULARY_FILES):
        return False
    return checkpoint.config.get("vocab_size") == _ROWS


def read_byte_vocabulary(checkpoint: Checkpoint, settings: TokenSettings) -> Source:
    """The tokenizer of a folder for which ``is_byte_tokenizer`` holds.

    Tokens beyond the embedding's rows (``vocab_size``) are left out with a note: ByT5Tokenizer always counts
    125 ``<extra_id_N>``, whether the model has rows for them or not. Raises VocabError where ids collide or
    the bytes have no rows.
    """
    rows = checkpoint.config.get("vocab_size")
    rows = rows if isinstance(rows, int) and not isinstance(rows, bool) else MAX_TOKENS
    if rows < FIRST_ADDED:
        raise VocabError(
            f"{checkpoint.folder / 'config.json'}: vocab_size is {rows}, but a tokenizer of bytes has "
            f"{FIRST_ADDED} ids: padding, end, unknown and 256 bytes",
            hint="check that config.json belongs to this checkpoint",
        )
    raw = read_json(checkpoint.folder, "tokenizer_config.json") or {}
    special_map = read_json(checkpoint.folder, "special_tokens_map.json") or {}
    tokens, added = _tokens(settings, raw, special_map)
    notes = list(settings.notes)
    if len(tokens) > rows:
        beyond = [text for text in tokens[rows:] if text is not None]
        tokens, added = tokens[:rows], [token for token in added if (token.id or 0) < rows]
        message = f"{len(beyond)} tokens have no embedding row and are left out: {_ends(beyond)}"
        notes.append(Note("tokens-without-rows", message))
    if _class(checkpoint) != _CLASS:
        message = (
            f"the folder names {quoted(_class(checkpoint))} but has no file for it; with {_ROWS} "
            "embedding rows as in ByT5, it is read as a byte vocabulary"
        )
        notes.append(Note("byte-vocabulary", message, warning=True))
    return _source(tokens, added, settings, tuple(notes))


def _tokens(
    settings: TokenSettings, raw: Mapping[str, Any], special_map: Mapping[str, Any]
) -> tuple[list[str | None], list[AddedToken]]:
    """Tokens by id, and all that are found by their text, by id."""
    known = {token.id: token for token in settings.added if token.id is not None}
    added: dict[int, AddedToken] = {}
    for index, (role, text, key) in enumerate(_BASE):
        flag_files = [flags for file in (special_map, raw) if isinstance(flags := file.get(key), dict)]
        strips = {side: not flag_files or flag_files[0].get(side) is True for side in ("lstrip", "rstrip")}
        added[index] = known.pop(index, AddedToken(settings.roles.get(role, text), index, **strips))
    if strange := [index for index in known if index < FIRST_ADDED]:
        raise VocabError(
            f"{quoted(known[strange[0]].text)} is given the id {strange[0]}, which belongs to a byte "
            "(3 to 258)"
        )
    added.update((index, token) for index, token in known.items() if index is not None)
    texts = {token.text for token in added.values()}
    more = [token.text for token in settings.added if token.id is None and token.text not in texts]
    if not any(_EXTRA_ID.fullmatch(text) for text in (*texts, *more)):
        more += [f"<extra_id_{number}>" for number in range(_extra_ids(raw))]
    free = (index for index in range(FIRST_ADDED, MAX_TOKENS) if index not in known)
    added.update((index, AddedToken(text, index)) for index, text in zip(free, more, strict=False))
    tokens: list[str | None] = [None] * (max(*added, FIRST_ADDED - 1) + 1)
    for symbol, byte in byte_symbols().items():
        tokens[OFFSET + byte] = symbol
    for index, token in added.items():
        tokens[index] = token.text
    named = [text for text in tokens if text is not None]
    if len(set(named)) != len(named):
        twice = next(text for text in named if named.count(text) > 1)
        raise VocabError(f"the token {quoted(twice)} appears twice in the byte vocabulary")
    return tokens, [added[index] for index in sorted(added)]


def _extra_ids(raw: Mapping[str, Any]) -> int:
    value = raw.get("extra_ids", EXTRA_IDS)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS - FIRST_ADDED:
        return value
    raise VocabError(f"tokenizer_config.json: extra_ids is {quoted(value)}, expected a number of tokens")


def _ends(texts: Sequence[str]) -> str:
    shown = [quoted(texts[0]), quoted(texts[-1])]
    return shown[0] if len(texts) == 1 else " to ".join(shown)


def _source(
    tokens: list[str | None],
    added: list[AddedToken],
    settings: TokenSettings,
    notes: tuple[Note, ...],
) -> Source:
    types = [TokenType.UNUSED if text is None else TokenType.NORMAL for text in tokens]
    for token in added:
        index = token.id or 0
        control = token.special or index < OFFSET
        types[index] = TokenType.CONTROL if control else TokenType.USER_DEFINED
    types[2] = TokenType.UNKNOWN
    # What is cut out of a text in every case is not special; ByT5 keeps its first three flagged otherwise.
    all_added = [replace(token, special=token.special or (token.id or 0) < OFFSET) for token in added]
    ids = {text: index for index, text in enumerate(tokens) if text is not None}
    roles = {role: ids[text] for role, text in settings.roles.items() if text in ids}
    special = {**roles, **{role: index for index, (role, _, _) in enumerate(_BASE)}}
    table = TokenTable(tuple(tokens), tuple(types), tuple(all_added), special, add_bos=False, add_eos=True)
    files = settings.files or ("config.json",)
    spec = {"model": {"type": "UTF-8 bytes"}}
    return Source(
        kind=KIND,
        table=table,
        description=describe(
            KIND, files, spec, table, 0, settings.chat_template, sentinels=sentinels(tokens)
        ),
        encode_batch=_encoder(all_added),
        chat_template=settings.chat_template,
        notes=notes,
    )


def sentinels(tokens: Sequence[str | None]) -> str:
    """Which ids of a byte vocabulary stand for masks, in words for ``kconv inspect``."""
    trained = "masks of pre-training: 258, 257, 256, …"
    extra = [(text, index) for index, text in enumerate(tokens) if text and _EXTRA_ID.fullmatch(text)]
    if not extra:
        return f"{trained}; no <extra_id_N>"
    (first, low), (last, high) = extra[0], extra[-1]
    return f"{trained}; {first} is {low}, {last} is {high}"


def are_bytes(tokens: Sequence[str | None]) -> bool:
    """Whether ids 3 to 258 are the 256 bytes in order, in GPT-2's symbols."""
    symbols = byte_symbols()
    return [symbols.get(text or "") for text in tokens[OFFSET:FIRST_ADDED]] == list(range(256))


def _encoder(added: Sequence[AddedToken]) -> Encoder:
    """Bytes + 3, and the tokens that are spelled out.

    ByT5Tokenizer also drops white space beside a spelled ``<pad>``, ``</s>`` or ``<unk>`` ("for backward
    compatibility", its code says) where no file gives them flags. That is not followed: llama.cpp cannot, and
    text rarely spells them.
    """
    patterns = {parse: added_pattern(added, parse) for parse in (True, False)}
    ids = {token.text: token.id or 0 for token in added}

    def encode(texts: Sequence[str], parse_special: bool) -> list[array[int]]:
        return [one(text, patterns[parse_special]) for text in texts]

    def one(text: str, pattern: re.Pattern[str] | None) -> array[int]:
        tokens = array("i")
        end = 0
        for match in pattern.finditer(text) if pattern else ():
            tokens.extend(in_bytes(text[end : match.start()]))
            tokens.append(ids[match.group()])
            end = match.end()
        tokens.extend(in_bytes(text[end:]))
        return tokens

    def in_bytes(text: str) -> list[int]:
        return [byte + OFFSET for byte in text.encode("utf-8", "surrogatepass")]

    return encode
