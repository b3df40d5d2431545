"""``kconv run``: generate text from a GGUF through llama.cpp."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from ..core.errors import GgufError, InputError, UsageError
from .console import emit_json, plural, say, seconds_text, terminal_text
from .generation import Runtime, Sampling, TextStream, choose_sampling, sampling_in_file
from .llama_runtime import KV_TYPES, LlamaRuntime
from .options import PATH, json_option, threads_option, verbose_option
from .progress import shown_progress
from .prompts import chosen_template, read_prompt, template_stops, token_room, whole_prompt


@dataclass(frozen=True)
class Generation:
    """What was generated.

    ``ids`` include the token that ended the turn; ``text`` does not include the stop string.
    ``stop_reason`` is ``end`` (the model ended its turn), ``stop`` (a stop string) or ``length``.
    """

    text: str
    ids: tuple[int, ...]
    stop_reason: str
    prompt_seconds: float
    seconds: float


EXAMPLES = """\b
Examples:
  kconv run 42dot_LLM-SFT-1.3B-Q4_0.gguf -p "서울의 명소를 알려줘."
  kconv run eagle-3b-preview-Q8_0.gguf --no-chat -p "대한민국의 수도는" -n 64 --greedy
  cat question.txt | kconv run model.gguf -p - --json
"""


@click.command("run", short_help="Generate text with a GGUF file.", epilog=EXAMPLES)
@click.argument("artifact", type=PATH)
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt; - reads it from standard input.")
@click.option(
    "-n",
    "--tokens",
    type=click.IntRange(min=-1),
    default=256,
    show_default=True,
    metavar="N",
    help="Generate at most N tokens; -1: until the model ends or its context is full.",
)
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Send the prompt as a user's turn through the file's chat template, or complete it as plain text."
    "  [default: --chat where the file has a template]",
)
@click.option("--system", metavar="TEXT", help="System text of the chat.  [default: the template's own]")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@click.option("--echo", is_flag=True, help="With plain text, print the prompt before its completion.")
@click.option(
    "--temp",
    "temperature",
    type=click.FloatRange(min=0),
    metavar="T",
    help="Temperature; 0 always takes the most likely token.",
)
@click.option(
    "--top-k", type=click.IntRange(0, 1_000_000), metavar="K", help="Choose among the K likeliest; 0: all."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Choose among the likeliest tokens that together reach P.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Leave out tokens less likely than P times the likeliest.",
)
@click.option(
    "--repeat-penalty",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="Make the last 64 tokens less likely to return; 1 switches it off.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), metavar="N", help="The same seed gives the same text."
)
@click.option("--greedy", is_flag=True, help="Always the most likely token: --temp 0 --repeat-penalty 1.")
@click.option(
    "--ctx",
    "context",
    type=click.IntRange(1, 10_000_000),
    metavar="N",
    help="Context size in tokens.  [default: what the prompt and -n need]",
)
@click.option(
    "--kv-type",
    type=click.Choice(KV_TYPES, case_sensitive=False),
    default="f16",
    show_default=True,
    help="Type of the attention cache; f32 is closest to the checkpoint.",
)
@threads_option
@json_option
@verbose_option
def command(
    artifact: Path,
    prompt: str | None,
    tokens: int,
    chat: bool | None,
    system: str | None,
    stops: tuple[str, ...],
    echo: bool,
    greedy: bool,
    context: int | None,
    kv_type: str,
    threads: int | None,
    as_json: bool,
    verbose: bool,
    **wishes: float | None,
) -> None:
    """Generate text with the GGUF file ARTIFACT, through llama.cpp.

    A file with a chat template is asked: the prompt becomes the user's turn, and only the answer is
    printed. Without a template, or with --no-chat, the prompt is completed as plain text. Sampling is the
    file's own recommendation where it carries one, else llama.cpp's default; --verbose shows it.
    """
    from ..core.cores import available_cores
    from ..core.gguf_file import read_header

    if artifact.is_dir():
        raise InputError(
            f"{artifact} is a folder, and what runs is a GGUF file",
            hint=f"convert it first: kconv to-gguf {artifact}",
        )
    text = read_prompt(prompt)
    header = read_header(artifact)
    if not header.tensors:
        raise GgufError(f"{artifact} holds a vocabulary but no weights", hint="give a converted model")
    sampling = _sampling(header.metadata, wishes, greedy=greedy)
    template = chosen_template(artifact, header.metadata, chat=chat, system=system)
    full = whole_prompt(header.metadata, template, text, system)
    stops = (*stops, *template_stops(template))
    with (
        shown_progress() as progress,
        LlamaRuntime(
            artifact,
            threads=threads or available_cores(),
            context=context,
            kv_type=kv_type.lower(),
            verbose=verbose,
            progress=progress,
        ) as runtime,
    ):
        ids = runtime.tokenize(full)
        count = token_room(len(ids), tokens, runtime.context_length, context)
        if verbose:
            say(f"kconv: {sampling}", err=True)
            say(f"kconv: the prompt has {len(ids)} tokens: {full!r}", err=True)
        out = None if as_json else sys.stdout
        if echo and template is None:
            _show(text, out)
        done = _generate(runtime, ids, sampling, count, stops, trim=template is not None or not text, out=out)
    if as_json:
        emit_json(_to_json(artifact, full, ids, sampling, template is not None, done))
    else:
        click.echo()
    _tell(done, len(ids), verbose=verbose, chat=template is not None)


def _sampling(metadata: Mapping[str, Any], wishes: Mapping[str, float | None], *, greedy: bool) -> Sampling:
    wished = dict(wishes)
    if greedy:
        if wished["temperature"] or wished["repeat_penalty"] not in (None, 1):
            raise UsageError("--greedy means --temp 0 --repeat-penalty 1, but another value is given too")
        wished |= {"temperature": 0.0, "repeat_penalty": 1.0}
    if wished["seed"] is None:
        wished["seed"] = secrets.randbits(31)
    return choose_sampling(sampling_in_file(metadata), wished)


def _generate(
    runtime: Runtime,
    ids: Sequence[int],
    sampling: Sampling,
    count: int,
    stops: Sequence[str],
    *,
    trim: bool,
    out: TextIO | None,
) -> Generation:
    """Generate, showing the text on ``out`` as it comes."""
    made: list[int] = []
    texts: list[str] = []
    begun = time.monotonic()
    first = 0.0
    stream = TextStream(stops, trim=trim)
    reason = "length"
    for token in runtime.generate(ids, sampling, count):
        first = first or time.monotonic()
        made.append(token)
        if runtime.is_end(token):
            reason = "end"
            break
        texts.append(stream.feed(runtime.piece(token)))
        _show(texts[-1], out)
        if stream.stopped is not None:
            reason = "stop"
            break
    texts.append(stream.finish())
    _show(texts[-1], out)
    now = time.monotonic()
    return Generation("".join(texts), tuple(made), reason, (first or now) - begun, now - (first or now))


def _show(text: str, out: TextIO | None) -> None:
    if out is not None and text:
        # not click's echo, which takes escape sequences out of what a pipe should get unchanged
        out.write(terminal_text(text) if out.isatty() else text)
        out.flush()


def _to_json(
    artifact: Path, prompt: str, ids: Sequence[int], sampling: Sampling, chat: bool, done: Generation
) -> dict[str, Any]:
    return {
        "artifact": str(artifact),
        "text": done.text,
        "ids": list(done.ids),
        "stop_reason": done.stop_reason,
        "prompt": prompt,
        "prompt_ids": list(ids),
        "chat": chat,
        "sampling": asdict(sampling),
        "prompt_seconds": round(done.prompt_seconds, 3),
        "seconds": round(done.seconds, 3),
    }


def _tell(done: Generation, prompt: int, *, verbose: bool, chat: bool) -> None:
    if done.stop_reason == "length" and chat:
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
