"""The vocabulary of a GGUF as llama.cpp takes it, its own choices included where a key is missing.

The choices are those of src/llama-vocab.cpp (llama_vocab::impl::load) as of llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.input_files import quoted
from ..core.vocabulary import GEMMA4, SPM, UNIGRAM, WORDPIECE, TokenType, Vocab
from .special_ids import MISSING_DEFAULTS

PREFIX = "tokenizer.ggml."

# Roles whose ids llama.cpp reads, and the older names of three of them.
ROLES = (
    "bos", "eos", "eot", "eom", "unknown", "seperator", "padding", "mask",
    "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep",
)  # fmt: skip
_OLD_ROLES = {"prefix": "fim_pre", "suffix": "fim_suf", "middle": "fim_mid"}

# Pre-tokenizers that add BOS unless add_bos_token says otherwise, and those without a BOS of their own.
_ADD_BOS = frozenset({
    "llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano",
    "tekken", "chameleon",
})  # fmt: skip
_NO_BOS = frozenset({"chatglm-bpe", "glm4", "glm5"})
ALWAYS_BOS = frozenset({"gemma4", "granite-embed-multi-311m"})
"""Pre-tokenizers that add BOS whatever add_bos_token says."""

RAW_PRE = frozenset({"sarvam-moe", *ALWAYS_BOS})
"""Pre-tokenizers of BPE over plain text with U+2581 for spaces; all others use GPT-2's symbols for bytes."""


@dataclass(frozen=True)
class MalformedKey:
    """A key that cannot be read as it has to be: in words what was expected, and what there is."""

    key: str
    expected: str
    found: str


def read_vocab(metadata: Mapping[str, Any]) -> tuple[Vocab, tuple[MalformedKey, ...]]:
    """The vocabulary under ``tokenizer.*``, and every key of a wrong type, which counts as missing.

    ``special`` holds the ids llama.cpp arrives at. ``types`` are all NORMAL where the file has none; those
    without a meaning count as UNUSED.
    """
    reader = _Reader(metadata)
    model = reader.text("model") or ""
    pre = GEMMA4 if model == GEMMA4 else reader.text("pre") or "default"
    tokens = reader.texts("tokens")
    spm, unigram, wordpiece = model == SPM, model == UNIGRAM, model == WORDPIECE
    lowercase = wordpiece and reader.flag("normalizer.lowercase", True)
    flags = {
        "add_bos": wordpiece or reader.flag("add_bos_token", spm or (pre in _ADD_BOS)),
        "add_eos": not wordpiece and reader.flag("add_eos_token", unigram),
        "add_space_prefix": reader.flag("add_space_prefix", spm),
        "remove_extra_whitespaces": unigram and reader.flag("remove_extra_whitespaces", False),
    }
    if not spm and not unigram and pre in ALWAYS_BOS:
        flags["add_bos"] = True
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        reader.fault("tokenizer.chat_template", "a text", template)
        template = None
    vocab = Vocab(
        model=model,
        tokens=tokens,
        types=reader.types(len(tokens)),
        scores=reader.numbers("scores"),
        merges=reader.texts("merges"),
        pre=pre,
        special=reader.special(model, pre, len(tokens)),
        charsmap=reader.octets("precompiled_charsmap") if unigram else b"",
        lowercase=lowercase,
        strip_accents=wordpiece and reader.flag("normalizer.strip_accents", lowercase),
        chat_template=template,
        add_bos=flags["add_bos"],
        add_eos=flags["add_eos"],
        add_space_prefix=flags["add_space_prefix"],
        remove_extra_whitespaces=flags["remove_extra_whitespaces"],
    )
    return vocab, tuple(reader.faults)


class _Reader:
    """Typed access to ``tokenizer.ggml.*``; what has the wrong type is noted and counts as missing."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.faults: list[MalformedKey] = []

    def fault(self, key: str, expected: str, actual: object) -> None:
        self.faults.append(MalformedKey(key, expected, quoted(actual)))

    def text(self, name: str) -> str | None:
        value = self._metadata.get(PREFIX + name)
        if value is None or isinstance(value, str):
            return value
        self.fault(PREFIX + name, "a text", value)
        return None

    def flag(self, name: str, default: bool) -> bool:
        value = self._metadata.get(PREFIX + name)
        if isinstance(value, bool):
            return value
        if value is not None:
            self.fault(PREFIX + name, "true or false", value)
        return default

    def texts(self, name: str) -> tuple[str, ...]:
        value = self._metadata.get(PREFIX + name)
        if isinstance(value, tuple) and _are(value, str):
            return value
        if value is not None:
            self.fault(PREFIX + name, "a list of texts", value)
        return ()

    def numbers(self, name: str) -> tuple[float, ...]:
        value = self._metadata.get(PREFIX + name)
        if isinstance(value, tuple) and _are(value, float, int):
            return value
        if value is not None:
            self.fault(PREFIX + name, "a list of numbers", value)
        return ()

    def octets(self, name: str) -> bytes:
        """An array of bytes; llama.cpp takes signed and unsigned ones."""
        value = self._metadata.get(PREFIX + name)
        if isinstance(value, bytes):
            return value
        if isinstance(value, tuple) and _are(value, int) and all(-128 <= item < 256 for item in value):
            return bytes(item & 0xFF for item in value)
        if value is not None:
            self.fault(PREFIX + name, "a list of bytes", value)
        return b""

    def types(self, tokens: int) -> tuple[TokenType, ...]:
        key = PREFIX + "token_type"
        value = self._metadata.get(key)
        if value is None:
            return (TokenType.NORMAL,) * tokens
        if not isinstance(value, tuple) or not _are(value, int):
            self.fault(key, "a list of whole numbers", value)
            return (TokenType.NORMAL,) * tokens
        known = {int(kind): kind for kind in TokenType}
        if strange := set(value) - known.keys():
            at = next(place for place, item in enumerate(value) if item in strange)
            self.fault(key, "numbers from 1 to 6", f"{value[at]} for token {at}")
            known |= dict.fromkeys(strange, TokenType.UNUSED)
        return tuple(map(known.__getitem__, value))

    def special(self, model: str, pre: str, tokens: int) -> dict[str, int]:
        """Ids by role: the file's where it lies within the vocabulary, else llama.cpp's own."""
        ids = {role: index for role, index in MISSING_DEFAULTS.get(model, {}).items() if index < tokens}
        if pre in _NO_BOS:
            ids.pop("bos", None)
        for name in (*ROLES, *_OLD_ROLES):
            key = f"{PREFIX}{name}_token_id"
            value = self._metadata.get(key)
            if value is None:
                continue
            if type(value) is not int or value < 0:
                self.fault(key, "a token's id", value)
            elif value < tokens:
                ids[_OLD_ROLES.get(name, name)] = value
        return ids


def _are(values: tuple[Any, ...], *types: type) -> bool:
    """Whether all are of just these types; a hundred thousand tokens are looked at more than once."""
    return set(map(type, values)) <= {*types}
