"""Tokenizer files without the tokens the embedding has no row for: a graph ends at such an id."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...core.checkpoint import Checkpoint
from ...core.input_files import read_json
from ...vocab.extra_tokens import leave_out
from ...vocab.token_settings import ROLES

_NAMED = ("tokenizer_config.json", "special_tokens_map.json")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


def trimmed_files(checkpoint: Checkpoint, rows: int) -> dict[str, bytes | None]:
    """The files that name tokens with ids from ``rows`` on, without them; None for one nothing is left of.

    Raises CheckpointError for malformed JSON.
    """
    read = {
        name: read_json(checkpoint.folder, name) for name in ("tokenizer.json", "added_tokens.json", *_NAMED)
    }
    made: dict[str, Any] = {}
    gone: set[str] = set()
    if (spec := read["tokenizer.json"]) is not None and isinstance(spec.get("model"), dict):
        texts = leave_out(spec, rows)
        gone.update(texts)
        made |= {"tokenizer.json": spec} if texts else {}
    if (ids := read["added_tokens.json"]) is not None:
        kept = {text: index for text, index in ids.items() if not _beyond(index, rows)}
        gone.update(ids.keys() - kept.keys())
        made |= {"added_tokens.json": kept or None} if len(kept) < len(ids) else {}
    decoder = (read["tokenizer_config.json"] or {}).get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        gone.update(_text(token) for index, token in decoder.items() if _beyond(index, rows))
    for name in _NAMED:
        settings = read[name]
        if settings is not None and (kept := _without(settings, gone, rows)) != settings:
            made[name] = kept
    return {
        name: None if value is None else (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
        for name, value in made.items()
    }


def _beyond(index: Any, rows: int) -> bool:
    text = str(index)
    return text.isascii() and text.isdigit() and int(text) >= rows


def _text(token: Any) -> str:
    return str(token.get("content")) if isinstance(token, Mapping) else str(token)


def _without(settings: Mapping[str, Any], gone: set[str], rows: int) -> dict[str, Any]:
    """Settings that name none of the tokens that are gone."""
    kept = {key: value for key, value in settings.items() if key not in ROLES or _text(value) not in gone}
    for key in _LISTS:
        if isinstance(kept.get(key), list):
            kept[key] = [token for token in kept[key] if _text(token) not in gone]
    decoder = kept.get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        kept["added_tokens_decoder"] = {key: each for key, each in decoder.items() if not _beyond(key, rows)}
    return kept
