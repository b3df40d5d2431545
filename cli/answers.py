"""Showing what a model generates, while it does and at the end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from ..core.language import _
from .console import emit_json, plural, say, seconds_text, terminal_text

if TYPE_CHECKING:
    from ..core.model import Note
    from ..flows.generate import Answer

_MORE = ("sampling", "prompt")  # notes for those who want to know more


def show_note(note: Note, *, verbose: bool) -> None:
    """Print what comes up before the first token, on standard error."""
    if note.name in _MORE:
        if verbose:
            say(f"kconv: {note.message}", err=True)
    elif note.name == "chat-template":
        if sys.stderr is not None and sys.stderr.isatty():
            say(f"kconv: {note.message}", err=True)
    else:
        say(f"kconv: {'warning' if note.warning else 'note'}: {note.message}", err=True)


def show_text(text: str) -> None:
    """Print a piece of text a model made, at once."""
    out = sys.stdout
    if out is not None and text:
        # not click's echo, which takes escape sequences out of what a pipe should get unchanged
        out.write(terminal_text(text) if out.isatty() else text)
        out.flush()


def show_answer(answer: Answer, *, as_json: bool, verbose: bool) -> None:
    """Print what was not shown while it was made: JSON, filled masks, or the end of the line."""
    from ..runtimes.masks import mask_name

    if as_json:
        emit_json(answer.to_json())
    elif answer.fills is not None:
        for fill in answer.fills:
            if fill.text is not None:
                show_text(f"{mask_name(fill.mask)}: {fill.text}\n")
        show_text(f"{answer.completed}\n")
    else:
        click.echo()
    left = [mask_name(fill.mask) for fill in answer.fills or () if fill.text is None]
    if left:
        say(f"kconv: warning: the model filled in nothing for {', '.join(left)}", err=True)
    if not verbose and not as_json and sys.stderr is not None and sys.stderr.isatty():
        say(_closing(answer), err=True)
    else:
        _print_summary(answer, verbose=verbose)


def _closing(answer: Answer) -> str:
    """``[12.3 tokens/s · 60 of at most 256 tokens]``, as below an answer in a conversation."""
    rate = _("{rate:.1f} tokens/s · ", rate=answer.rate) if answer.rate else ""
    amount = _("{count:,} of at most {limit:,} tokens", count=len(answer.ids), limit=answer.limit)
    ended = _(" · cut off (-n allows more)") if answer.stop_reason == "length" else ""
    return f"[{rate}{amount}{ended}]"


def _print_summary(answer: Answer, *, verbose: bool) -> None:
    """What matters beside the text: that it was cut off where an end was to be expected, and the speed."""
    prompt = len(answer.prompt_ids)
    if answer.stop_reason == "length" and (answer.chat or answer.fills is not None):
        say(f"kconv: stopped after {plural(len(answer.ids), 'token')}; -n allows more", err=True)
    if verbose:
        prompt_rate = prompt / answer.prompt_seconds if answer.prompt_seconds > 0 else 0.0
        say(
            f"kconv: prompt {plural(prompt, 'token')} in {seconds_text(answer.prompt_seconds)} "
            f"({prompt_rate:.0f}/s), {plural(len(answer.ids), 'token')} generated ({answer.rate:.1f}/s), "
            f"ended by {answer.stop_reason}",
            err=True,
        )
