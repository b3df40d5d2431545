"""A tokenizer in words, for ``kconv inspect``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tokenizer import Description, TokenTable

_SHOWN = 60


def describe(
    kind: str,
    files: tuple[str, ...],
    spec: Mapping[str, Any],
    table: TokenTable,
    merges: int,
    chat_template: str | None,
    *,
    sentinels: str = "",
) -> Description:
    """Describe a tokenizer by the parts of its tokenizer.json, or their equivalents."""
    model = spec["model"]
    flags = [name for name in ("byte_fallback", "ignore_merges", "fuse_unk") if model.get(name)]
    counts = [f"{sum(text is not None for text in table.tokens)} tokens"]
    counts += [f"{merges} merges"] if merges else []
    return Description(
        kind=kind,
        files=files,
        model=f"{model.get('type') or 'BPE'}({', '.join((*counts, *flags))})",
        normalizer=component(spec.get("normalizer")),
        pre_tokenizer=component(spec.get("pre_tokenizer")),
        decoder=component(spec.get("decoder")),
        post_processor=component(spec.get("post_processor")),
        size=len(table.tokens),
        added=len(table.added),
        specials={role: (token_id, table.tokens[token_id] or "") for role, token_id in table.special.items()},
        add_bos=table.add_bos,
        add_eos=table.add_eos,
        chat_template=chat_template is not None,
        sentinels=sentinels,
    )


def component(value: Any) -> str:
    """One part in a line: ``Sequence(Prepend(prepend='▁'), Replace(…))``; ``none`` where there is none."""
    if not isinstance(value, Mapping) or not value.get("type"):
        return "none"
    kind = str(value["type"])
    if kind == "TemplateProcessing":
        return f"{kind}({_template(value.get('single'))})"
    inner: list[str] = []
    for key, entry in value.items():
        if key == "type" or entry is None:
            continue
        if key in ("normalizers", "pretokenizers", "decoders", "processors") and isinstance(entry, list):
            inner += [component(part) for part in entry]
        elif key == "pattern" and isinstance(entry, Mapping):
            inner += [_short(pattern) for pattern in entry.values()]
        elif key not in ("trim_offsets", "precompiled_charsmap"):
            inner.append(f"{key}={_short(entry)}")
    return f"{kind}({', '.join(inner)})" if inner else kind


def _template(single: Any) -> str:
    names = []
    for part in single if isinstance(single, list) else []:
        if isinstance(part, Mapping):
            names += [
                "text" if key == "Sequence" else str(dict(entry).get("id")) for key, entry in part.items()
            ]
    return " ".join(names)


def _short(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
