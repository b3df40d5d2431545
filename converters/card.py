"""General metadata of a checkpoint: ``general.*`` keys, from its card, licence file and place.

Only what is really there. The card's front matter is YAML by a stranger: it is read as plain strings, lists
and mappings, and what does not parse is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..core.checkpoint import Checkpoint
from ..core.foreign_values import object_of, text_of, texts_of
from ..core.input_files import quoted
from ..core.model import MetadataValue, Note
from ..core.reading import hub_origin
from ..vocab.context import front_matter, read_beginning, read_card

_MAX_FRONT_MATTER = 64 << 10
_MAX_TEXT = 500
_MAX_ITEMS = 100
_text = partial(text_of, longest=_MAX_TEXT)
_texts = partial(texts_of, most=_MAX_ITEMS, longest=_MAX_TEXT)
_THOUSANDS = ((1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M"))
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "COPYING")

# What a licence file is, by words near its beginning; the first that fits. Names are the Hub's.
_LICENCE_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (r"NonCommercial[- ]NoDerivatives 4\.0|CC[- ]BY[- ]NC[- ]ND[- ]4\.0", "cc-by-nc-nd-4.0"),
        (r"NonCommercial[- ]ShareAlike 4\.0|CC[- ]BY[- ]NC[- ]SA[- ]4\.0", "cc-by-nc-sa-4.0"),
        (r"Attribution[- ]NonCommercial 4\.0|CC[- ]BY[- ]NC[- ]4\.0", "cc-by-nc-4.0"),
        (r"Attribution[- ]ShareAlike 4\.0|CC[- ]BY[- ]SA[- ]4\.0", "cc-by-sa-4.0"),
        (r"Attribution 4\.0|CC[- ]BY[- ]4\.0", "cc-by-4.0"),
        (r"LLAMA 3\.1 COMMUNITY LICENSE", "llama3.1"),
        (r"LLAMA 3\.2 COMMUNITY LICENSE", "llama3.2"),
        (r"LLAMA 3 COMMUNITY LICENSE", "llama3"),
        (r"LLAMA 2 COMMUNITY LICENSE", "llama2"),
        (r"Apache License\s+Version 2\.0", "apache-2.0"),
        (r"\A\s*(The )?MIT License|Permission is hereby granted, free of charge", "mit"),
        (r"GNU GENERAL PUBLIC LICENSE\s+Version 3", "gpl-3.0"),
        (r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3", "lgpl-3.0"),
    )
)
_OF_THEIR_OWN = frozenset({"other", "unknown", "llama2", "llama3", "llama3.1", "llama3.2", "gemma"})
_NON_COMMERCIAL = re.compile(r"non-?commercial|\bnc\b|research[- ]only|academic", re.IGNORECASE)
_NO_DERIVATIVES = re.compile(r"no-?deriv|\bnd\b", re.IGNORECASE)


def general_metadata(checkpoint: Checkpoint) -> dict[str, MetadataValue]:
    """``general.*`` keys: name, size, organization, source, licence, languages, tags, base models."""
    card = _parse(front_matter(read_card(checkpoint.folder)))
    repository, commit = hub_origin(checkpoint.folder)
    metadata: dict[str, MetadataValue] = {"general.type": "model"}
    name = _text(card.get("model_name")) or (repository or "").rpartition("/")[2]
    metadata["general.name"] = name or _text(checkpoint.folder.resolve().name) or "model"
    label = _size_label(checkpoint)
    if label is not None:
        metadata["general.size_label"] = label
    repository = repository or _named_repository(checkpoint)
    if repository is not None:
        organization, _, _ = repository.rpartition("/")
        if organization:
            metadata["general.organization"] = organization
        metadata["general.source.repo_url"] = f"https://huggingface.co/{repository}"
        if commit is not None:  # which may be another than the branch has by the time somebody looks
            metadata["general.source.url"] = f"https://huggingface.co/{repository}/tree/{commit}"
    for key, field in (("general.author", "model_creator"), ("general.source.url", "url")):
        text = _text(card.get(field))
        if text is not None:
            metadata[key] = text
    metadata |= _licence(checkpoint, card)
    metadata |= _base_models(card)
    for key, fields in (
        ("general.tags", ("tags", "pipeline_tag")),
        ("general.languages", ("language", "languages")),
    ):
        items = tuple(dict.fromkeys(item for field in fields for item in _texts(card.get(field))))
        if items:
            metadata[key] = items
    return metadata


def _parse(text: str) -> Mapping[str, Any]:
    """Front matter as strings, lists and mappings; empty where it is no YAML mapping.

    BaseLoader resolves nothing, so ``no`` stays the language it is.
    """
    if not text or len(text) > _MAX_FRONT_MATTER:
        return {}
    import yaml  # type: ignore[import-untyped, unused-ignore]

    try:
        value = yaml.load(text.replace("\t", "  "), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError):
        return {}
    return object_of(value)


def _size_label(checkpoint: Checkpoint) -> str | None:
    """The number of weights as gguf-py abbreviates it: ``1.4B``."""
    tensors = checkpoint.tensors.items()
    total = sum(tensor.elements for name, tensor in tensors if name not in checkpoint.aliases)
    return size_label(total) if total else None


def size_label(total: int) -> str:
    """A number with two digits at least and the letter of its thousands (gguf-py, utility.py, size_label)."""
    _, factor, letter = next((each for each in _THOUSANDS if total > each[0]), (0, 1e-3, "K"))
    scaled = total * factor
    digits = max(2 - len(str(round(scaled)).lstrip("0")), 0)
    return f"{scaled:.{digits}f}{letter}"


def _named_repository(checkpoint: Checkpoint) -> str | None:
    """``_name_or_path`` where it is a repository of the folder's own name.

    Of a fine-tuned model it names the parent instead, which is not the source of these weights.
    """
    name = checkpoint.config.get("_name_or_path")
    if not isinstance(name, str) or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name):
        return None
    own = name.rpartition("/")[2].lower() == checkpoint.folder.resolve().name.lower()
    return name if own else None


def _licence(checkpoint: Checkpoint, card: Mapping[str, Any]) -> dict[str, MetadataValue]:
    """The licence the card names, else the one its licence file is."""
    names = _texts(card.get("license"))
    keys: dict[str, MetadataValue] = {}
    if names:
        keys["general.license"] = ", ".join(names)
        for key, field in (
            ("general.license.name", "license_name"),
            ("general.license.link", "license_link"),
        ):
            text = _text(card.get(field))
            if text is not None:
                keys[key] = text
        return keys
    for file in _LICENCE_FILES:
        text = read_beginning(checkpoint.folder / file, 1 << 16)
        if not text.strip():
            continue
        known = next((name for pattern, name in _LICENCE_TEXTS if pattern.search(text[:4000])), None)
        if known is not None:
            return {"general.license": known}
        title = _text(text.strip().partition("\n")[0])
        return {"general.license": "other", "general.license.name": title or file}
    return {}


def _base_models(card: Mapping[str, Any]) -> dict[str, MetadataValue]:
    """``general.base_model.*`` for every ``base_model`` that is a repository's name."""
    keys: dict[str, MetadataValue] = {}
    count = 0
    for model in _texts(card.get("base_model")):
        path = urlsplit(model).path.strip("/") if model.startswith("https://huggingface.co/") else model
        organization, _, name = path.rpartition("/")
        if not re.fullmatch(r"[\w-][\w.-]*", organization) or not re.fullmatch(r"[\w-][\w.-]*", name):
            continue
        keys[f"general.base_model.{count}.name"] = name
        keys[f"general.base_model.{count}.organization"] = organization
        keys[f"general.base_model.{count}.repo_url"] = f"https://huggingface.co/{organization}/{name}"
        count += 1
    return {"general.base_model.count": count, **keys} if count else {}


def licence_notice(metadata: Mapping[str, MetadataValue]) -> Note | None:
    """A warning where the licence restricts what may be done with the converted file."""
    licence = metadata.get("general.license")
    if not isinstance(licence, str):
        return None
    name = metadata.get("general.license.name")
    link = metadata.get("general.license.link")
    # Hyphens part the abbreviations of cc-by-nc-nd, underscores would not (\b).
    words = " ".join(str(part) for part in (licence, name) if part is not None).replace("_", "-")
    limits = []
    if _NON_COMMERCIAL.search(words):
        limits.append("no commercial use")
    if _NO_DERIVATIVES.search(words):
        limits.append("no distribution of modified versions, which may include converted files")
    custom = licence.lower() in _OF_THEIR_OWN
    if not limits and not custom:
        return None
    shown = quoted(str(name) if licence.lower() == "other" and name else licence)
    where = f" ({link})" if isinstance(link, str) and link else ""
    terms = "; ".join(limits) if limits else "it has its own terms; read them before you distribute the file"
    return Note("licence", f"licence {shown}{where}: {terms}", warning=True)
