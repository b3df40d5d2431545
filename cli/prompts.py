"""Where ``kconv run`` has its prompt from: the command line or standard input."""

from __future__ import annotations

import sys

from ..core.errors import InputError, UsageError

_MAX_PROMPT = 64 << 20  # bytes from standard input


def read_prompt(prompt: str | None, fill: str | None = None) -> str:
    """The prompt, or the text with masks, as text; ``-`` is standard input without its last newline."""
    if prompt is not None and fill is not None:
        raise UsageError("-p and --fill cannot be combined", hint="pass one of them")
    given = fill if prompt is None else prompt
    if given is None:
        raise UsageError("no prompt given", hint="pass -p TEXT, or -p - to read standard input")
    if given != "-":
        from ..runtimes.prompts import checked_text

        return checked_text(given, "the prompt")
    if sys.stdin is None:
        raise UsageError("standard input is closed, but -p - reads the prompt from it")
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
