"""Where ``kconv run`` has its prompt from: the command line or standard input."""

from __future__ import annotations

import sys

from ..core.errors import InputError, UsageError

_NONE = "no prompt given"
_HINT = "pass it as a word, with -p TEXT, or on standard input"
_MAX_PROMPT = 64 << 20  # bytes from standard input


def read_prompt(prompt: str | None, fill: str | None = None) -> str:
    """The prompt, or the text with masks; ``-`` or none is standard input without its last newline."""
    if prompt is not None and fill is not None:
        raise UsageError("-p and --fill cannot be combined", hint="pass one of them")
    given = fill if prompt is None else prompt
    unasked = given is None
    if given is not None and given != "-":
        from ..runtimes.prompts import checked_text

        return checked_text(given, "the prompt")
    if sys.stdin is None or (unasked and sys.stdin.isatty()):
        raise UsageError(_NONE if unasked else "standard input is closed, but -p - reads from it", hint=_HINT)
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
    text = text.removesuffix("\n").removesuffix("\r")
    if unasked and not text:
        raise UsageError(_NONE, hint=_HINT)
    return text


def in_a_terminal() -> bool:
    """Whether somebody may be asked: input and output are terminals."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
