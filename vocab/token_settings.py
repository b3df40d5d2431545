"""What stands beside a tokenizer: roles of special tokens, added tokens, BOS and EOS, the chat template.

Read from tokenizer_config.json, special_tokens_map.json, added_tokens.json and chat_template.jinja, in the
forms transformers has written over the years: a token is a string or an object with ``content`` and flags; a
chat template is a string, a list of named ones, or a file of its own (which wins).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.errors import VocabError
from ..core.input_files import quoted, read_json, read_text
from ..core.model import Note

# Roles as in GGUF keys; "seperator" is how llama.cpp spells that key (src/llama-arch.cpp).
ROLES = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
    "sep_token": "seperator",
    "cls_token": "cls",
    "mask_token": "mask",
}
MAX_TOKENS = 1 << 21
MAX_CHAT_TEMPLATE = 1 << 20
_FLAGS = ("special", "normalized", "lstrip", "rstrip", "single_word")


@dataclass(frozen=True)
class AddedToken:
    """A token matched in the text before the model sees it. ``id`` is None where no file says it."""

    text: str
    id: int | None = None
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


@dataclass(frozen=True)
class TokenSettings:
    """``roles`` maps a GGUF role to a token's text; ``added`` has one entry a text, those with ids first."""

    roles: Mapping[str, str]
    added: tuple[AddedToken, ...]
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_prefix_space: bool = False
    legacy: bool = True
    tokenizer_class: str = ""
    chat_template: str | None = None
    files: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()


def read_token_settings(checkpoint: Checkpoint) -> TokenSettings:
    """Read the files named above; those that are missing change nothing.

    Raises CheckpointError where one is malformed JSON and VocabError where a value has the wrong type.
    """
    folder = checkpoint.folder
    config = read_json(folder, "tokenizer_config.json") or {}
    special_map = read_json(folder, "special_tokens_map.json") or {}
    added_map = read_json(folder, "added_tokens.json") or {}
    template, template_file, notes = _chat_template(checkpoint, config)
    names = {
        "tokenizer_config.json": config,
        "special_tokens_map.json": special_map,
        "added_tokens.json": added_map,
    }
    return TokenSettings(
        roles={**_roles(special_map, "special_tokens_map.json"), **_roles(config, "tokenizer_config.json")},
        added=_added(config, special_map, added_map),
        add_bos=_flag(config, "add_bos_token"),
        add_eos=_flag(config, "add_eos_token"),
        add_prefix_space=_flag(config, "add_prefix_space") or False,
        legacy=_flag(config, "legacy") is not False,
        tokenizer_class=str(config.get("tokenizer_class") or ""),
        chat_template=template,
        files=tuple(name for name, content in names.items() if content) + template_file,
        notes=notes,
    )


def _flag(config: Mapping[str, Any], key: str) -> bool | None:
    value = config.get(key)
    if value is None or isinstance(value, bool):
        return value
    raise VocabError(f"tokenizer_config.json: {key} is {quoted(value)}, expected true or false")


def _token(value: Any, where: str, token_id: int | None = None, *, special: bool = True) -> AddedToken:
    """A token given as a string or as an object; ``special`` where the object does not say."""
    if isinstance(value, str):
        return AddedToken(value, token_id)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        special = value.get("special", special)
        flags = {flag: value[flag] for flag in _FLAGS[1:] if flag in value}
        if isinstance(special, bool) and all(isinstance(flag, bool) for flag in flags.values()):
            return AddedToken(value["content"], token_id, special, **flags)
    raise VocabError(f"{where} is {quoted(value)}, expected a string or an object with content and flags")


def _roles(source: Mapping[str, Any], file: str) -> dict[str, str]:
    return {
        role: _token(source[key], f"{file}: {key}").text
        for key, role in ROLES.items()
        if source.get(key) is not None
    }


def _token_id(value: Any, where: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS:
        return value
    raise VocabError(f"{where} is {quoted(value)}, expected a token id below {MAX_TOKENS}")


def _added(
    config: Mapping[str, Any], special_map: Mapping[str, Any], added_map: Mapping[str, Any]
) -> tuple[AddedToken, ...]:
    """Added tokens of all files; of the same text the one with flags and id wins."""
    tokens: dict[str, AddedToken] = {}
    for token in _special_tokens(special_map, "special_tokens_map.json"):
        tokens[token.text] = token
    for token in _special_tokens(config, "tokenizer_config.json"):
        tokens[token.text] = token
    for text, value in added_map.items():
        known = tokens.get(text, AddedToken(text, special=False, normalized=True))
        tokens[text] = _with_id(known, _token_id(value, f"added_tokens.json: {quoted(text)}"))
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise VocabError("tokenizer_config.json: added_tokens_decoder is not an object")
    for key, value in decoder.items():
        where = f"tokenizer_config.json: added_tokens_decoder[{quoted(key)}]"
        token = _token(value, where, _token_id(key, where), special=False)
        tokens[token.text] = token
    known_ids = sorted((t for t in tokens.values() if t.id is not None), key=lambda t: t.id or 0)
    return (*known_ids, *(t for t in tokens.values() if t.id is None))


def _with_id(token: AddedToken, token_id: int) -> AddedToken:
    return AddedToken(
        token.text, token_id, token.special, token.normalized, token.lstrip, token.rstrip, token.single_word
    )


def _special_tokens(source: Mapping[str, Any], file: str) -> Iterator[AddedToken]:
    for key in ROLES:
        if source.get(key) is not None:
            yield _token(source[key], f"{file}: {key}")
    more = source.get("additional_special_tokens")
    if more is None:
        return
    if not isinstance(more, list):
        raise VocabError(f"{file}: additional_special_tokens is {quoted(more)}, expected a list")
    for value in more:
        yield _token(value, f"{file}: additional_special_tokens")


def _chat_template(
    checkpoint: Checkpoint, config: Mapping[str, Any]
) -> tuple[str | None, tuple[str, ...], tuple[Note, ...]]:
    text = read_text(checkpoint.folder, "chat_template.jinja", limit=MAX_CHAT_TEMPLATE)
    if text is not None:
        return text, ("chat_template.jinja",), ()
    value = config.get("chat_template")
    if not value:
        # what processors of models that also see wrote, before there was chat_template.jinja
        value = (read_json(checkpoint.folder, "chat_template.json") or {}).get("chat_template")
        files = ("chat_template.json",) if isinstance(value, str) else ()
        return (value or None, files, ()) if isinstance(value, str) else (None, (), ())
    if isinstance(value, str):
        return value, (), ()
    named: dict[str, str] = {}
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        pairs = [(entry.get("name"), entry.get("template")) for entry in entries]
        named = {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}
    elif isinstance(value, dict):
        named = {key: text for key, text in value.items() if isinstance(text, str)}
    if not named:
        message = (
            "tokenizer_config.json: chat_template is neither text nor a list of named templates; it is left "
            "out; --chat-template takes a corrected one"
        )
        return None, (), (Note("broken-template", message, warning=True),)
    name = "default" if "default" in named else next(iter(named))
    others = ", ".join(other for other in named if other != name)
    message = f"of the named chat templates {name!r} is used"
    return named[name], (), (Note("chat-template", message + (f", not {others}" if others else "")),)
