"""What a model is to see: the prompt as the user gave it, through a chat template or as plain text."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import GgufError, InputError, UsageError
from .console import say

_MAX_PROMPT = 64 << 20  # bytes from standard input


def read_prompt(prompt: str | None) -> str:
    """The prompt as text; ``-`` stands for standard input, whose last newline does not count."""
    if prompt is None:
        raise UsageError("no prompt given", hint="pass -p TEXT, or -p - to read standard input")
    if prompt != "-":
        return checked_text(prompt, "the prompt")
    if sys.stdin is None:
        raise UsageError("standard input is closed, and -p - reads the prompt from there")
    data = sys.stdin.buffer.read(_MAX_PROMPT + 1)
    if len(data) > _MAX_PROMPT:
        raise InputError(
            f"standard input holds more than {_MAX_PROMPT >> 20} MiB", hint="give a shorter prompt"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not UTF-8 (at byte {error.start})",
            hint="convert it first, for example: iconv -f cp949 -t utf-8",
        ) from None
    return text.removesuffix("\n").removesuffix("\r")


def checked_text(text: str, what: str) -> str:
    """``text`` from the command line, if it is text; UsageError where its bytes were no UTF-8."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise UsageError(f"{what} is not UTF-8", hint="set the terminal's encoding to UTF-8")
    return text


def chosen_template(
    artifact: Path, metadata: Mapping[str, Any], *, chat: bool | None, system: str | None
) -> str | None:
    """The file's chat template if the prompt is to go through it, else None."""
    template = metadata.get("tokenizer.chat_template")
    if chat is False or (chat is None and not template):
        if system is not None:
            raise UsageError("--system belongs to a chat, and this prompt is completed as plain text")
        return None
    if not isinstance(template, str) or not template:
        raise InputError(
            f"{artifact} carries no chat template",
            hint="leave out --chat, or convert again with --chat-template",
        )
    if any("\ud800" <= char <= "\udfff" for char in template):
        raise GgufError(f"{artifact}: tokenizer.chat_template is not UTF-8", hint="pass --no-chat")
    if chat is None and sys.stderr is not None and sys.stderr.isatty():
        say("kconv: asking through the file's chat template; --no-chat completes plain text", err=True)
    return template


def whole_prompt(metadata: Mapping[str, Any], template: str | None, text: str, system: str | None) -> str:
    """What the model is to see, as text."""
    # This vocabulary cannot put the space in front that the checkpoint's tokenizer puts there
    # (converters write this key); chat templates of such files begin with it themselves.
    space = " " if metadata.get("kconv.leading_space") is True else ""
    if template is None:
        return space + text
    from ..vocab.templates import render_chat

    messages = [{"role": "system", "content": checked_text(system, "--system")}] if system is not None else []
    messages.append({"role": "user", "content": text})
    return render_chat(
        template,
        messages,
        bos_token=_token(metadata, "bos"),
        eos_token=_token(metadata, "eos"),
    )


def _token(metadata: Mapping[str, Any], role: str) -> str:
    """Text of the special token of that role, empty where the file names none."""
    tokens, number = metadata.get("tokenizer.ggml.tokens"), metadata.get(f"tokenizer.ggml.{role}_token_id")
    if isinstance(tokens, tuple) and isinstance(number, int) and 0 <= number < len(tokens):
        return str(tokens[number]).encode("utf-8", "replace").decode()
    return ""


def template_stops(template: str | None) -> tuple[str, ...]:
    """Texts that end an answer under a prompt format we know."""
    if template is None:
        return ()
    from ..vocab.templates import format_of_template

    known = format_of_template(template)
    return () if known is None else known.stop


def token_room(prompt: int, wanted: int, trained: int, context: int | None) -> int:
    """How many tokens may be generated, at most ``wanted`` (all there is room for if negative)."""
    if prompt == 0:
        raise UsageError("the prompt is empty, and this file puts no BOS token in front of it")
    limit = context or trained
    if prompt >= limit:
        raise InputError(
            f"the prompt has {prompt:,} tokens, the context holds {limit:,} and one must be left",
            hint="shorten the prompt" if context is None else "shorten the prompt or pass a larger --ctx",
        )
    if limit > trained:
        say(
            f"kconv: warning: the model was trained with {trained:,} tokens, --ctx asks for {limit:,}",
            err=True,
        )
    return limit - prompt if wanted < 0 else min(wanted, limit - prompt)
