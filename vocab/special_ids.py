"""Special ids: what the tokenizer says, and config.json or generation_config.json only where it says nothing.

Fine-tuning scripts leave ids of another vocabulary in the two configuration files (AOG: BOS 1, EOS 2 over
Llama 3's vocabulary), while tokenizer files name tokens by text and cannot go stale like that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ..core.input_files import quoted
from ..core.model import Note
from ..core.vocabulary import BPE, SPM, UNIGRAM, WORDPIECE, TokenType, Vocab
from .context import AdapterContext

NAME = "special-ids"

# Role in the GGUF (gguf-py constants.py, Keys.Tokenizer; the misspelling is theirs) and field name in
# transformers' files.
ROLES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
    "seperator": "sep_token",
    "mask": "mask_token",
}
# What llama.cpp takes where a key is missing (src/llama-vocab.cpp, llama_vocab::impl::load).
MISSING_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    SPM: {"bos": 1, "eos": 2, "unknown": 0},
    BPE: {"bos": 11, "eos": 11},
    UNIGRAM: {"eos": 1, "unknown": 2, "padding": 0},
    WORDPIECE: {"bos": 101, "unknown": 100, "seperator": 102, "padding": 0, "mask": 103},
}
_SPECIAL_TYPES = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
_SPECIAL_TEXT = re.compile(r"<[^<>\s]+>|\[[^\[\]\s]+\]|<\|.+\|>")


def shown(vocab: Vocab, index: int) -> str:
    """A token for people: ``2 '</s>'``."""
    return f"{index} {quoted(vocab.tokens[index])}" if 0 <= index < vocab.size else f"{index} (no token)"


def looks_special(vocab: Vocab, index: int) -> bool:
    """Whether a token may play a special role: by its type, or a text like ``</s>`` and ``[EOS]``."""
    if not 0 <= index < vocab.size or vocab.types[index] is TokenType.BYTE:
        return False
    if vocab.types[index] in _SPECIAL_TYPES:
        return True
    return _SPECIAL_TEXT.fullmatch(vocab.tokens[index]) is not None


def special_ids(vocab: Vocab, context: AdapterContext) -> tuple[Vocab, tuple[Note, ...]]:
    """Give every role the tokenizer's id, else the configuration's if sensible; notes on differences."""
    special = dict(vocab.special)
    stale: list[str] = []
    warnings: list[str] = []
    filled: list[str] = []
    for role, field in ROLES.items():
        if role == "bos" and vocab.add_bos and _begins_with_end(vocab):
            continue
        tokenizer_id = _tokenizer_id(vocab, context, role, field)
        configured = _configured_ids(context, field)
        if tokenizer_id is not None:
            special[role] = tokenizer_id
            wrong = {file: ids for file, ids in configured.items() if ids and tokenizer_id not in ids}
            if wrong:
                stale.append(f"{role} {shown(vocab, tokenizer_id)} ({_listed(vocab, wrong)})")
            continue
        special.pop(role, None)
        chosen, problems = _sensible(vocab, role, configured)
        warnings += problems
        if chosen is not None:
            special[role] = chosen
            filled.append(f"{role} {shown(vocab, chosen)}")
    notes = []
    if stale:
        message = f"outdated ids in the configuration; the tokenizer's are written: {'; '.join(stale)}"
        notes.append(Note(NAME, message))
    if filled:
        message = (
            f"the tokenizer does not define this token; taken from the configuration: {'; '.join(filled)}"
        )
        notes.append(Note(NAME, message))
    notes += [Note(NAME, message, warning=True) for message in (*warnings, *_dangers(vocab, special))]
    return (vocab if special == vocab.special else replace(vocab, special=special)), tuple(notes)


def _begins_with_end(vocab: Vocab) -> bool:
    """Whether EOS stands before every text, as the reader saw, whatever the files name BOS (XGLM)."""
    return "eos" in vocab.special and vocab.special.get("bos") == vocab.special["eos"]


def _tokenizer_id(vocab: Vocab, context: AdapterContext, role: str, field: str) -> int | None:
    """The id the tokenizer's files give a role by text, else what the tokenizer itself says (``special``).

    tokenizer_config.json comes first if it lists its added tokens, special_tokens_map.json otherwise, as in
    transformers (tokenization_utils_base.py). Texts that are no token are the reader's to warn of.
    """
    files = [context.special_tokens_map, context.tokenizer_config]
    if "added_tokens_decoder" in context.tokenizer_config:
        files.reverse()
    for content in files:
        text = content.get(field)
        if isinstance(text, Mapping):
            text = text.get("content")
        index = _find(vocab, text) if isinstance(text, str) and text else None
        if index is not None:
            return index
    index = vocab.special.get(role)
    configured = _configured_ids(context, field).values()
    if index is not None and any(index in ids for ids in configured) and not looks_special(vocab, index):
        return None  # the configuration's word, passed on by the reader, and no sensible one
    return index


def _find(vocab: Vocab, text: str) -> int | None:
    try:
        return vocab.tokens.index(text)
    except ValueError:
        return None


def _configured_ids(context: AdapterContext, field: str) -> dict[str, tuple[int, ...]]:
    """The ids the two configuration files give a role; -1, which some write for none, left out."""
    configured: dict[str, tuple[int, ...]] = {}
    files = (("generation_config.json", context.generation_config), ("config.json", context.config))
    for name, content in files:
        value = content.get(f"{field}_id")
        ids = value if isinstance(value, list) else [value]
        configured[name] = tuple(i for i in ids if isinstance(i, int) and not isinstance(i, bool) and i >= 0)
    return configured


def _listed(vocab: Vocab, configured: Mapping[str, tuple[int, ...]]) -> str:
    """``config.json and generation_config.json: 1 '"'``."""
    by_ids: dict[tuple[int, ...], list[str]] = {}
    for file, ids in configured.items():
        by_ids.setdefault(ids, []).append(file)
    return "; ".join(
        f"{' and '.join(sorted(files))}: {', '.join(shown(vocab, index) for index in ids[:4])}"
        for ids, files in by_ids.items()
    )


def _sensible(
    vocab: Vocab, role: str, configured: Mapping[str, tuple[int, ...]]
) -> tuple[int | None, list[str]]:
    """The first configured id that can be a special token; a warning for others and for contradictions."""
    good: list[int] = []
    problems: list[str] = []
    for file, ids in configured.items():
        if ids and looks_special(vocab, ids[0]):
            good.append(ids[0])
        elif ids:
            problems.append(
                f"{file} has {role} {shown(vocab, ids[0])}, which is not a special token; it is not written"
            )
    if len(set(good)) > 1:
        problems.append(
            f"generation_config.json has {role} {shown(vocab, good[0])}, config.json "
            f"{shown(vocab, good[1])}, the tokenizer none; the first is written"
        )
    return (good[0] if good else None), problems


def _dangers(vocab: Vocab, special: Mapping[str, int]) -> list[str]:
    """What llama.cpp's defaults would do for roles that stay empty."""
    defaults = MISSING_DEFAULTS.get(vocab.model, {})
    dangers: list[str] = []
    end = defaults.get("eos", -1)
    if "eos" not in special and 0 <= end < vocab.size:
        dangers.append(
            f"no end-of-text token is defined anywhere; llama.cpp will use {shown(vocab, end)}, and "
            "answers may end too early or never"
        )
    begin = defaults.get("bos", -1)
    if "bos" not in special and vocab.add_bos and 0 <= begin < vocab.size:
        dangers.append(f"BOS is to be added but none is defined; llama.cpp will use {shown(vocab, begin)}")
    return dangers
