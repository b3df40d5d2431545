"""The ``tokenizer.*`` keys but for the lists of entries: flags, special ids, the chat template.

Compared is their effect in llama.cpp (src/llama-vocab.cpp, llama_vocab::impl::load): a key that is
missing counts as llama.cpp's own choice, and the tokens that end an answer count together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any

from ..core.language import phrase
from ..core.vocabulary import BPE, GEMMA4, SPM, UNIGRAM, Vocab, gguf_keys
from ..vocab.end_of_turn import KNOWN_END_OF_GENERATION
from ..vocab.in_gguf import PREFIX, RAW_PRE, ROLES, read_vocab
from ..vocab.leading_space import LEADING_SPACE
from .entries import malformed
from .proof import Finding
from .token_text import readable

_COMPARED = ("model", "pre", "add_bos_token", "add_eos_token", "add_space_prefix", "suppress_tokens")
_COMPARED_UNIGRAM = ("remove_extra_whitespaces", "precompiled_charsmap")
_FILLERS = ("fim_pad", "fim_rep", "fim_sep")  # these end an answer, too

# What comes of a wrong id that llama.cpp reads and that ends no answer; only a unigram reads the unknown one.
_GAPS = ("fim_pre", "fim_suf", "fim_mid")
_HARM = {
    "bos": phrase("texts would begin with the wrong token"),
    "unknown": phrase("text without a token would be read as the wrong one"),
    **dict.fromkeys(_GAPS, phrase("programs that fill gaps would ask for it with the wrong token")),
}
_ADDED = {
    ("bos", True): phrase("BOS would be put before every text; the checkpoint's tokenizer does not"),
    ("bos", False): phrase("BOS would not be put before texts; the checkpoint's tokenizer does"),
    ("eos", True): phrase("EOS would be put after every text; the checkpoint's tokenizer does not"),
    ("eos", False): phrase("EOS would not be put after texts; the checkpoint's tokenizer does"),
}
_UNREAD = phrase("no answer changes, but programs may show this id or use it")


def check_tokenizer_keys(metadata: Mapping[str, Any], expected: Vocab) -> tuple[list[Finding], int]:
    """The findings, and how many keys were compared. Lists of the wrong type are the tokens part's."""
    vocab, faults = read_vocab(metadata)
    right, _ = read_vocab(gguf_keys(expected))
    findings = malformed(faults, lists=False)
    findings += _model(metadata, vocab, right)
    findings += _flags(metadata, vocab, right)
    findings += _unigram(metadata, vocab, right)
    findings += _begin(metadata, vocab, right)
    findings += _ends(metadata, vocab, right)
    findings += _other_roles(metadata, vocab, right, expected)
    findings += _suppressed(metadata, vocab)
    findings += _template(vocab, right)
    compared = len(_COMPARED) + (len(_COMPARED_UNIGRAM) if right.model == UNIGRAM else 0)
    return findings, compared + len(ROLES) + 1


def _model(metadata: Mapping[str, Any], vocab: Vocab, right: Vocab) -> Iterator[Finding]:
    if vocab.model != right.model and (vocab.model, vocab.pre, right.model) != (GEMMA4, right.pre, BPE):
        shown = f"'{vocab.model}'" if PREFIX + "model" in metadata else phrase("missing")
        message = phrase(
            "the tokenizer model is {shown} in the file, but must be {model!r} for this checkpoint: "
            "llama.cpp would tokenize every text by other rules"
        ).of(shown=shown, model=right.model)
        yield Finding(PREFIX + "model", message, right.model, shown)
    elif vocab.pre != right.pre and right.model == BPE:
        message = phrase(
            "the pre-tokenizer is {found!r} in the file, but {expected!r} in a conversion; the tokens "
            "part shows whether they split text alike"
        ).of(found=vocab.pre, expected=right.pre)
        yield Finding(PREFIX + "pre", message, right.pre, vocab.pre, grave=False)


def _flags(metadata: Mapping[str, Any], vocab: Vocab, right: Vocab) -> Iterator[Finding]:
    flags = [("bos", vocab.add_bos, right.add_bos), ("eos", vocab.add_eos, right.add_eos)]
    for role, does, should in flags:
        if does != should:
            shown = str(does).lower()
            if _missing(metadata, f"add_{role}_token"):
                shown = phrase("missing (so {value})").of(value=shown)
            message = _ADDED[role, does]
            yield Finding(f"{PREFIX}add_{role}_token", message, str(should).lower(), shown)
    if right.model == vocab.model in (SPM, UNIGRAM) and vocab.add_space_prefix != right.add_space_prefix:
        does = vocab.add_space_prefix
        message = (
            phrase("llama.cpp would put a space before every text, for which this vocabulary is not made")
            if does
            else phrase("llama.cpp would put no space before a text, while the checkpoint's tokenizer does")
        )
        key = PREFIX + "add_space_prefix"
        yield Finding(key, message, str(right.add_space_prefix).lower(), str(does).lower())
    leading = metadata.get(LEADING_SPACE)
    if leading is not None and not isinstance(leading, bool):
        message = phrase("the file has {leading!r:.60} for {key}, but kconv run expects true or false").of(
            leading=leading, key=LEADING_SPACE
        )
        yield Finding(LEADING_SPACE, message, "true or false", f"{leading!r:.60}", grave=False)


def _unigram(metadata: Mapping[str, Any], vocab: Vocab, right: Vocab) -> Iterator[Finding]:
    """What is done to a text before a SentencePiece unigram cuts it."""
    if not right.model == vocab.model == UNIGRAM:
        return
    does, should = vocab.remove_extra_whitespaces, right.remove_extra_whitespaces
    if does != should:
        message = (
            phrase("llama.cpp would drop extra spaces in a text; the checkpoint's tokenizer keeps them")
            if does
            else phrase("llama.cpp would keep extra spaces in a text; the checkpoint's tokenizer drops them")
        )
        missing = _missing(metadata, "remove_extra_whitespaces")
        shown = phrase("missing (so {value})").of(value="false") if missing else str(does).lower()
        yield Finding(PREFIX + "remove_extra_whitespaces", message, str(should).lower(), shown)
    if vocab.charsmap != right.charsmap:
        message = phrase(
            "SentencePiece's compiled normalization is not the checkpoint's: llama.cpp would normalize "
            "text differently before tokenizing it"
        )
        meant, shown = _octets(right.charsmap), _octets(vocab.charsmap)
        yield Finding(PREFIX + "precompiled_charsmap", message, meant, shown)


def _octets(value: bytes) -> str:
    """Bytes for people: how many, and a digest to distinguish two of them."""
    return f"{len(value):,} bytes, sha256 {sha256(value).hexdigest()[:16]}…" if value else phrase("missing")


def _missing(metadata: Mapping[str, Any], name: str) -> bool:
    return PREFIX + name not in metadata


def _token(vocab: Vocab, index: int) -> str:
    """A token for people: ``2 '</s>'``."""
    if not 0 <= index < vocab.size:
        return phrase("{index} (no token)").of(index=index)
    byte_level = vocab.model == BPE and vocab.pre not in RAW_PRE
    return f"{index} {readable(vocab.tokens[index], byte_level=byte_level)}"


def _token_and_origin(metadata: Mapping[str, Any], vocab: Vocab, role: str) -> str:
    """The token of a role for people, and where it comes from if not from the file."""
    index = vocab.special.get(role)
    text = phrase("none") if index is None else _token(vocab, index)
    value = metadata.get(f"{PREFIX}{role}_token_id")
    if value is None:
        return phrase("missing") if index is None else phrase("missing (so {value})").of(value=text)
    return text if value == index else f"{value!r:.20}, which is not a token (so {text})"


def _begin(metadata: Mapping[str, Any], vocab: Vocab, right: Vocab) -> Iterator[Finding]:
    """BOS: of no weight where neither texts nor chats begin with it."""
    one, other = vocab.special.get("bos"), right.special.get("bos")
    if one != other:
        grave = vocab.add_bos or "bos_token" in (vocab.chat_template or "")
        shown, meant = _token_and_origin(metadata, vocab, "bos"), _name(right, other)
        harm = _HARM["bos"] if grave else _UNREAD
        message = phrase("{harm}: bos is {shown} instead of {meant}").of(harm=harm, shown=shown, meant=meant)
        yield Finding(PREFIX + "bos_token_id", message, meant, shown, grave=grave)


def _name(vocab: Vocab, index: int | None) -> str:
    return phrase("none") if index is None else _token(vocab, index)


def _ends(metadata: Mapping[str, Any], vocab: Vocab, right: Vocab) -> Iterator[Finding]:
    """EOS by itself, then all tokens that end an answer together."""
    one, other = vocab.special.get("eos"), right.special.get("eos")
    stops, should = _stops(vocab), _stops(right)
    if one != other:
        written = vocab.add_eos or "eos_token" in (vocab.chat_template or "")
        grave = written or one not in should or other not in stops
        shown, meant = _token_and_origin(metadata, vocab, "eos"), _name(right, other)
        harm = phrase("generation would stop at the wrong token") if grave else _UNREAD
        yield Finding(
            PREFIX + "eos_token_id",
            phrase("{harm}: eos is {shown} instead of {meant}").of(harm=harm, shown=shown, meant=meant),
            meant,
            shown,
            grave,
        )
    for index in sorted((stops ^ should) - {one, other}):
        roles = [
            r for r in ("eot", "eom", *_FILLERS) if index in (vocab.special.get(r), right.special.get(r))
        ]
        role = roles[0] if roles else "eot"
        token = _token(right if index < right.size else vocab, index)
        ends = index in should
        message = (
            phrase("generation would not stop at {token}, which ends answers of this model").of(token=token)
            if ends
            else phrase("generation would stop at {token}, which does not end answers of this model").of(
                token=token
            )
        )
        key = f"{PREFIX}{role}_token_id"
        yield Finding(key, message, token if ends else phrase("no end"), phrase("no end") if ends else token)


def _stops(vocab: Vocab) -> set[int]:
    """Ids at which llama.cpp ends an answer: by their roles and by their texts."""
    roles = ("eos", "eot", "eom", *_FILLERS)
    known = {index for index, text in enumerate(vocab.tokens) if text in KNOWN_END_OF_GENERATION}
    return known | {vocab.special[role] for role in roles if role in vocab.special}


def _other_roles(
    metadata: Mapping[str, Any], vocab: Vocab, right: Vocab, expected: Vocab
) -> Iterator[Finding]:
    """A role llama.cpp reads is grave where both name it and they differ; ends have been compared."""
    for role in ROLES:
        one, other = vocab.special.get(role), right.special.get(role)
        if role in ("bos", "eos") or one == other:
            continue
        read = role in _GAPS or (role == "unknown" and right.model == UNIGRAM)
        grave = read and role in expected.special and not _missing(metadata, f"{role}_token_id")
        shown, meant = _token_and_origin(metadata, vocab, role), _name(right, other)
        message = (
            phrase("the file has no token for the role {role}; a conversion writes {meant}").of(
                role=role, meant=meant
            )
            if one is None
            else phrase("{harm}: {role} is {shown} instead of {meant}").of(
                harm=_HARM[role] if grave else _UNREAD, role=role, shown=shown, meant=meant
            )
        )
        yield Finding(f"{PREFIX}{role}_token_id", message, meant, shown, grave=grave)


def _suppressed(metadata: Mapping[str, Any], vocab: Vocab) -> Iterator[Finding]:
    """``suppress_tokens``: ids that are never to be generated."""
    value = metadata.get(PREFIX + "suppress_tokens")
    ids = value if isinstance(value, tuple) else ()
    real = [index for index in ids if type(index) is int and 0 <= index < vocab.size]
    if value is not None and (real or not isinstance(value, tuple)):
        first = _token(vocab, real[0]) if real else f"{value!r:.60}"
        message = phrase("{count} tokens would never be generated, {first} among them").of(
            count=len(real) or phrase("some"), first=first
        )
        yield Finding(PREFIX + "suppress_tokens", message, phrase("missing"), first)


def _template(vocab: Vocab, right: Vocab) -> Iterator[Finding]:
    """Not grave: it changes no prediction, and people replace templates on purpose."""
    one, other = vocab.chat_template, right.chat_template
    if one == other:
        return
    if one is None:
        message = phrase("the file has no chat template, but the checkpoint has one")
    elif other is None:
        message = phrase("the file has a chat template, but the checkpoint has none")
    else:
        message = phrase(
            "the file's chat template is not the checkpoint's: chats reach the model in another format"
        )
    yield Finding("tokenizer.chat_template", message, _beginning(other), _beginning(one), grave=False)


def _beginning(template: str | None) -> str:
    return phrase("missing") if template is None else f"{len(template)} characters, {template[:60]!r} …"
