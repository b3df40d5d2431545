"""``{% generation %}`` in chat templates: marks for training, which transformers alone knows.

Other renderers of Jinja refuse the whole template over it. What it encloses is rendered as if it were not
there, so ``{% if true %}`` takes its place: unlike nothing at all, the white space around the tag
stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from ..core.model import Note
from ..core.vocabulary import Vocab
from .context import AdapterContext

NAME = "generation-tags"

_OPENING = re.compile(r"\{\{|\{%|\{#")
_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")
_RAW = re.compile(r"\{%[-+]?\s*raw\s*[-+]?%\}")
_END_OF_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
# The rest of a tag or an expression: braces within texts do not end it. No two ways to read a character, so
# a stranger's template takes no more time than its length.
_CODE = {
    "{{": re.compile(r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|(?!\}\})[^"'])*+\}\}""", re.DOTALL),
    "{%": re.compile(r"""(?:"(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|(?!%\})[^"'])*+%\}""", re.DOTALL),
}


def without_generation_tags(vocab: Vocab, context: AdapterContext) -> tuple[Vocab, tuple[Note, ...]]:
    """The vocabulary with a chat template that renders the same where these tags are unknown."""
    template = vocab.chat_template
    replaced = None if template is None else replaced_tags(template)
    if replaced is None or replaced == template:
        return vocab, ()
    message = (
        "the chat template marks training text with {% generation %}, a tag of transformers that "
        "other programs reject; it is replaced by {% if true %}, which renders the same"
    )
    return replace(vocab, chat_template=replaced), (Note(NAME, message),)


def replaced_tags(template: str) -> str:
    """The template with ``{% if true %}`` for ``{% generation %}``; as it was if it is broken."""
    if "generation" not in template:
        return template
    tags = list(_tags(template))
    if not _balanced(tags):
        return template
    pieces, end = [], 0
    for tag in tags:
        word = "endif" if tag[2] else "if true"
        pieces += [template[end : tag.start()], f"{{%{tag[1]} {word} {tag[3]}%}}"]
        end = tag.end()
    return "".join([*pieces, template[end:]])


def _balanced(tags: list[re.Match[str]]) -> bool:
    depth = 0
    for tag in tags:
        depth += -1 if tag[2] else 1
        if depth < 0:
            return False
    return depth == 0


def _tags(template: str) -> Iterator[re.Match[str]]:
    """Tags that are code, not in comments, texts or raw blocks, up to where the template breaks off."""
    at = 0
    while opening := _OPENING.search(template, at):
        kind, at = opening.group(), opening.start()
        if kind == "{#":
            end = template.find("#}", at + 2)
            if end < 0:
                return
            at = end + 2
            continue
        if tag := _TAG.match(template, at):
            yield tag
        raw = _RAW.match(template, at)
        matches = (
            _END_OF_RAW.search(template, raw.end()) if raw else (tag or _CODE[kind].match(template, at + 2))
        )
        if matches is None:
            return
        at = matches.end()
