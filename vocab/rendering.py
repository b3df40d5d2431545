"""Rendering chat templates, which come with checkpoints and are therefore hostile programs.

Jinja's sandbox keeps a template from reaching Python's internals, not from running for ever or filling the
memory (``{{ 'a' * 10 ** 11 }}``). So each rendering is a child process (``template_child.py``) with limits on
the template's own processor time, its memory and its output. What a template does is thus the same on a busy
machine and on an idle one: it renders, fails, or needs more than kconv gives it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ..core.children import Child, ChildRefused, retry_once
from ..core.errors import InputError

SECONDS = 10.0  # of processor time; templates in use take a hundredth
MAX_MEMORY = 1 << 30
MAX_OUTPUT = 1 << 22
_ESCAPED = 12  # bytes JSON takes for a character, at most


class TemplateFailure(Exception):
    """A template does not compile or does not render; ``line`` is where, if known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line = message, line

    def __str__(self) -> str:
        return self.message if self.line is None else f"line {self.line}: {self.message}"


class TemplateLimit(InputError):
    """A template needs more time or memory than kconv gives it. What it would render stays unknown."""


def render_all(
    template: str, contexts: Sequence[Mapping[str, Any]], *, moment: float | None = None
) -> tuple[str, ...]:
    """Render a template once for each set of variables (JSON values), all in one child process.

    ``moment`` (seconds since 1970) is the time the template sees, by default that of the clock; with a
    moment chance is fixed, too. No contexts: the template is compiled only. Raises TemplateFailure for what
    is wrong with it, TemplateLimit where it runs into a limit, and ChildDied, which says nothing about it.
    """
    limits = {"seconds": SECONDS, "memory": MAX_MEMORY, "output": MAX_OUTPUT}
    request = json.dumps({"template": template, "contexts": list(contexts), "moment": moment, **limits})
    most = _ESCAPED * MAX_OUTPUT * max(len(contexts), 1)
    try:
        answer = retry_once(lambda: _ask(request.encode(), most))
    except ChildRefused as refusal:
        amount = f"{MAX_MEMORY >> 20} MiB of memory" if refusal.limit == "memory" else f"{SECONDS:g} seconds"
        raise TemplateLimit(
            f"the chat template needs more than {amount}{'' if refusal.limit else ' or crashed its process'}",
            hint="convert with --chat-template and a template of your own, or with --chat-template none",
        ) from refusal
    if "error" in answer:
        raise TemplateFailure(answer["error"], answer["line"])
    return tuple(answer["texts"])


def _ask(request: bytes, most: int) -> dict[str, Any]:
    with Child("kconv.vocab.template_child", library="Jinja") as child:
        child.send(struct.pack("<I", len(request)) + request)
        (size,) = struct.unpack("<I", child.receive(4))
        if size > most:
            raise TemplateFailure(f"renders more than {MAX_OUTPUT} characters")
        answer: dict[str, Any] = json.loads(child.receive(size))
    return answer
