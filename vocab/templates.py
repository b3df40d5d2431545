"""Prompt formats as Jinja chat templates: by name, from a file, or recognised.

The named ones are written from the models' own programs and cards (``data/templates``). They keep to what
three renderers share: jinja2 as transformers uses it, llama-cpp-python's Jinja2ChatFormatter, and
llama.cpp's own engine (common/jinja). llama-cpp-python adds no BOS to a rendered chat and llama-server takes
a doubled one away, so a template begins with ``bos_token`` exactly where the model's tokenizer adds BOS.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, UsageError, VocabError
from ..core.input_files import InputFile, quoted
from ..core.vocabulary import Vocab
from .context import AdapterContext
from .rendering import TemplateFailure, render_all

MAX_TEMPLATE = 256 << 10
NO_TEMPLATE = "none"
SOME_DAY = 1.7e9
"""The moment templates are told wherever a file is decided (14 November 2023): what it holds does not depend
on the day it is made."""


@dataclass(frozen=True)
class PromptFormat:
    """One model's prompt format.

    ``needs`` are the tokens a vocabulary must have for the format to be its own; ``own_name`` matches the
    model's name and ``sibling_name`` names of models that share everything but the format. ``system`` is the
    system text of the card, which the template uses where a chat has none. ``stop`` are texts that begin the
    next turn and so end an answer that the end-of-text token did not end. ``hint`` says what to do where the
    vocabulary fits and no name decides.
    """

    name: str
    model: str
    needs: frozenset[str]
    own_name: re.Pattern[str]
    sibling_name: re.Pattern[str] | None = None
    system: str = ""
    stop: tuple[str, ...] = ()
    hint: str = ""

    @property
    def template(self) -> str:
        """The Jinja text, without the newline its file ends with."""
        data = resources.files(__package__) / "data" / "templates" / f"{self.name}.jinja"
        return data.read_text(encoding="utf-8").rstrip("\n")


DOT42_TOKENS = frozenset({"<|endoftext|>", "<||bos||>", "<||pad||>", "<||unk||>"})

FORMATS = (
    PromptFormat(
        name="42dot",
        model="42dot_LLM-SFT-1.3B",
        needs=DOT42_TOKENS,
        own_name=re.compile(r"(?<![a-z0-9])42dot[ _-]*LLM[ _-]*SFT(?![a-z])", re.IGNORECASE),
        sibling_name=re.compile(r"(?<![a-z0-9])42dot[ _-]*LLM[ _-]*PLM(?![a-z])", re.IGNORECASE),
        system="호기심 많은 인간 (human)과 인공지능 봇 (AI bot)의 대화입니다. 봇의 이름은 42dot LLM이고 "
        "포티투닷 (42dot)에서 개발했습니다. 봇은 인간의 질문에 대해 친절하게 유용하고 상세한 답변을 "
        "제공합니다.",
        stop=("<human>:",),
        hint="if this is the SFT model and not the PLM, which has the same vocabulary, pass "
        "--chat-template 42dot",
    ),
    PromptFormat(
        name="aog",
        model="Llama-3-Ko-8B-Instruct-AOG",
        needs=frozenset({"<|begin_of_text|>", "<|end_of_text|>"}),
        own_name=re.compile(r"(?<![a-z0-9])Llama-3-Ko-8B-Instruct-AOG(?![a-z0-9])", re.IGNORECASE),
        system="친절한 챗봇으로서 상대방의 요청에 최대한 자세하고 친절하게 답하자.",
        stop=("### Question:",),
    ),
)


def format_named(name: str) -> PromptFormat | None:
    """The prompt format of that name, case ignored."""
    return next((known for known in FORMATS if known.name == name.lower()), None)


def format_of_template(template: str | None) -> PromptFormat | None:
    """The prompt format whose template this is, if it is one of ours.

    Something may stand before it: the space some vocabularies cannot add by themselves.
    """
    return next((known for known in FORMATS if template and template.endswith(known.template)), None)


def template_names() -> tuple[str, ...]:
    """What ``--chat-template`` takes besides a file."""
    return (*(known.name for known in FORMATS), NO_TEMPLATE)


def resolve_template(name_or_path: str) -> str | None:
    """The Jinja text of a named format or of a file; None for ``none``.

    Raises UsageError for what is neither, VocabError for a file that is too large, not UTF-8, or does not
    compile.
    """
    if name_or_path.lower() == NO_TEMPLATE:
        return None
    named = format_named(name_or_path)
    if named is not None:
        return named.template
    path = Path(name_or_path)
    if not path.exists():
        raise UsageError(
            f"unknown chat template {name_or_path!r}: neither a known name nor a file",
            hint=f"pass one of {', '.join(template_names())}, or the path of a Jinja file",
        )
    template = _read_template(path)
    check_template(template, str(path))
    return template


def _read_template(path: Path) -> str:
    try:
        file = InputFile(path)
        if file.size > MAX_TEMPLATE:
            raise VocabError(f"{path}: {file.size} bytes, expected at most {MAX_TEMPLATE}")
        text = file.read(0, file.size).decode("utf-8")
    except CheckpointError as error:
        raise VocabError(f"chat template: {error.message}") from error
    except UnicodeDecodeError as error:
        raise VocabError(f"{path}: not UTF-8 at byte {error.start}, expected a Jinja template") from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n").rstrip("\n")


def check_template(template: str, where: str) -> None:
    """Raise VocabError with the line unless the template compiles."""
    try:
        render_all(template, [])
    except TemplateFailure as failure:
        raise VocabError(
            f"{where}: {failure}, expected a Jinja chat template", hint="correct it or pass another one"
        ) from failure


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
    moment: float | None = None,
) -> str:
    """The prompt a chat template makes of messages (``role``, ``content``), as transformers would render it.

    It holds BOS where the template writes it: tokenize it without adding another. ``moment`` is the time
    (seconds since 1970) the template sees, by default that of the clock; what decides over a file passes
    ``SOME_DAY``. The template runs in a child process with limits (rendering.py). Raises VocabError
    where it fails, TemplateLimit where it runs into one, ChildDied where nothing is known.
    """
    frozen = json.dumps([dict(message) for message in messages])
    # What depends on the clock is not kept.
    render = _render.__wrapped__ if moment is None else _render
    rendered = render(template, frozen, bos_token, eos_token, add_generation_prompt, moment)
    if isinstance(rendered, TemplateFailure):
        raise VocabError(
            f"the chat template cannot render these messages: {rendered}",
            hint="use messages its roles allow, or convert again with another --chat-template",
        ) from rendered
    return rendered


@functools.lru_cache(maxsize=8)
def _render(
    template: str, messages: str, bos_token: str, eos_token: str, generate: bool, moment: float | None
) -> str | TemplateFailure:
    """Failures are remembered too: adapters meet the same template with every candidate vocabulary.

    What is raised is not: a process that was killed, a limit.
    """
    variables = {
        "messages": json.loads(messages),
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": generate,
        "tools": None,
        "documents": None,
    }
    try:
        return render_all(template, [variables], moment=moment)[0]
    except TemplateFailure as failure:
        return failure.with_traceback(None)  # which would keep all callers, and their tokenizer, alive


def recognise_template(context: AdapterContext, vocab: Vocab) -> tuple[PromptFormat, str] | None:
    """The format a checkpoint without a template was certainly trained with, and the evidence.

    Certain is a vocabulary that has the format's tokens together with a name that says so, and no name that
    says a sibling.
    """
    for known in FORMATS:
        if not vocab.ids.keys() >= known.needs:
            continue
        names = [(where, name) for where, name in context.names.items() if known.own_name.search(name)]
        sibling = known.sibling_name is not None and any(
            known.sibling_name.search(name) for name in context.names.values()
        )
        if names and not sibling:
            where, name = names[0]
            return known, f"{where}: {quoted(name)}"
    return None


def likely_template(context: AdapterContext, vocab: Vocab) -> PromptFormat | None:
    """A format with a hint to give, where only the vocabulary speaks for it and no name speaks against."""
    for known in FORMATS:
        sibling = known.sibling_name is not None and any(
            known.sibling_name.search(name) for name in context.names.values()
        )
        if known.hint and not sibling and vocab.ids.keys() >= known.needs:
            return known
    return None
