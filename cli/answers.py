"""Asking a model a question, and showing its answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from ..runtimes.generation import Generation, Runtime, TextStream, generate_text, token_bytes
from ..runtimes.sampling import Sampling
from .console import emit_json, plural, say, seconds_text, terminal_text
from .masks import Fill, check_prompt, completed, ending_sentinels, mask_name, read_fills
from .prompts import Question, token_room

if TYPE_CHECKING:
    from ..core.model import Note


@dataclass(frozen=True)
class Answer:
    """What a model made of a question; ``ids`` are the prompt's, ``fills`` None where no masks were asked.

    ``notes`` are the runtime's.
    """

    asked: Question
    ids: tuple[int, ...]
    sampling: Sampling
    done: Generation
    fills: tuple[Fill, ...] | None = None
    notes: tuple[Note, ...] = ()


def answer(
    runtime: Runtime,
    asked: Question,
    sampling: Sampling,
    stops: Sequence[str],
    *,
    tokens: int,
    context: int | None,
    factor: int = 1,
    echo: bool,
    show: bool,
    verbose: bool,
) -> Answer:
    """Have the model answer, in at most ``tokens`` tokens (negative: all there is room for).

    The encoder reads a position for ``factor`` tokens of the prompt. With ``show`` the text appears on
    standard output while it is made, but for masks, which are read at the end. Raises InputError and
    UsageError where the prompt does not fit.
    """
    for note in runtime.notes:
        say(f"kconv: {'warning' if note.warning else 'note'}: {note.message}", err=True)
    ids = runtime.tokenize(*asked.parts)
    if asked.masks is not None:
        check_prompt(ids, asked.masks, asked.sentinels)
    count = token_room(
        len(ids), tokens, runtime.context_length, context,
        encoder_decoder=asked.encoder_decoder, factor=factor,
    )  # fmt: skip
    if verbose:
        say(f"kconv: {sampling}", err=True)
        say(f"kconv: the prompt has {len(ids)} tokens: {asked.text!r}", err=True)
    out = sys.stdout if show and asked.masks is None else None
    if echo and asked.template is None:
        _show(out, asked.text)
    done = generate_text(
        runtime,
        runtime.generate(ids, sampling, count),
        TextStream((*stops, *asked.stops), trim=asked.trim),
        partial(_show, out),
        ends=() if asked.masks is None else ending_sentinels(asked.masks, asked.sentinels),
        names=asked.sentinels.names,
    )
    return Answer(asked, tuple(ids), sampling, done, _fills(runtime, asked, done), runtime.notes)


def show_answer(artifact: Path, given: Answer, *, as_json: bool, verbose: bool) -> None:
    """Print what was not shown while it was made: JSON, filled masks, or the end of the line."""
    asked = given.asked
    if as_json:
        emit_json(_to_json(artifact, given))
    elif asked.masks is not None and given.fills is not None:
        for fill in given.fills:
            if fill.text is not None:
                _show(sys.stdout, f"{mask_name(fill.mask)}: {fill.text}\n")
        _show(sys.stdout, completed(asked.masks, given.fills) + "\n")
    else:
        click.echo()
    left = [mask_name(fill.mask) for fill in given.fills or () if fill.text is None]
    if left:
        say(f"kconv: warning: the model put nothing in place of {', '.join(left)}", err=True)
    _tell(given, verbose=verbose)


def _fills(runtime: Runtime, asked: Question, done: Generation) -> tuple[Fill, ...] | None:
    if asked.masks is None:
        return None

    def text_of(ids: Sequence[int]) -> str:
        stream = TextStream()
        texts = [stream.feed(token_bytes(runtime, token, asked.sentinels.names)) for token in ids]
        return "".join(texts) + stream.finish(cut=done.stop_reason == "length")

    ids = done.ids[:-1] if done.stop_reason == "end" else done.ids
    return tuple(read_fills(ids, asked.masks, asked.sentinels, text_of))


def _show(out: TextIO | None, text: str) -> None:
    if out is not None and text:
        # not click's echo, which takes escape sequences out of what a pipe should get unchanged
        out.write(terminal_text(text) if out.isatty() else text)
        out.flush()


def _to_json(artifact: Path, given: Answer) -> dict[str, Any]:
    asked, done = given.asked, given.done
    told: dict[str, Any] = {
        "artifact": str(artifact),
        "text": done.text,
        "ids": list(done.ids),
        "stop_reason": done.stop_reason,
        "prompt": asked.text,
        "prompt_ids": list(given.ids),
        "chat": asked.template is not None,
        "sampling": asdict(given.sampling),
        "prompt_seconds": round(done.prompt_seconds, 3),
        "seconds": round(done.seconds, 3),
        "notes": [asdict(note) for note in given.notes],
    }
    if asked.masks is not None and given.fills is not None:
        told |= {
            "fills": [asdict(fill) for fill in given.fills],
            "completed": completed(asked.masks, given.fills),
        }
    return told


def _tell(given: Answer, *, verbose: bool) -> None:
    """What matters beside the text: that it was cut off where an end was to be expected, and the speed."""
    done, prompt = given.done, len(given.ids)
    if done.stop_reason == "length" and (given.asked.template is not None or given.fills is not None):
        say(f"kconv: stopped after {plural(len(done.ids), 'token')}; -n allows more", err=True)
    if verbose:
        after_first = max(0, len(done.ids) - 1)
        rate = after_first / done.seconds if done.seconds > 0 else 0.0
        prompt_rate = prompt / done.prompt_seconds if done.prompt_seconds > 0 else 0.0
        say(
            f"kconv: prompt {plural(prompt, 'token')} in {seconds_text(done.prompt_seconds)} "
            f"({prompt_rate:.0f}/s), {plural(len(done.ids), 'token')} generated ({rate:.1f}/s), "
            f"ended by {done.stop_reason}",
            err=True,
        )
