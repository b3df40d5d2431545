"""``kconv run``: generate text from a GGUF through llama.cpp."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import click

from ..core.errors import GgufError, InputError, UsageError
from .console import emit_json, plural, say, seconds_text, terminal_text
from .generation import (
    Generation,
    Runtime,
    Sampling,
    TextStream,
    choose_sampling,
    generate_text,
    sampling_in_file,
    token_bytes,
)
from .llama_runtime import KV_TYPES, LlamaRuntime
from .masks import Fill, check_prompt, completed, ending_sentinels, mask_name, read_fills
from .options import PATH, json_option, threads_option, verbose_option
from .progress import shown_progress
from .prompts import Question, question, read_prompt, token_room

EXAMPLES = """\b
Examples:
  kconv run 42dot_LLM-SFT-1.3B-Q4_0.gguf -p "서울의 명소를 알려줘."
  kconv run eagle-3b-preview-Q8_0.gguf --no-chat -p "대한민국의 수도는" -n 64 --greedy
  cat question.txt | kconv run model.gguf -p - --json
  kconv run kebyt5-base-preview-Q8_0.gguf --fill "한국의 수도는 <extra_id_0>이다."
  kconv run t5-translator-Q8_0.gguf -p "translate English to German: Good morning."
"""


@click.command("run", short_help="Generate text with a GGUF file.", epilog=EXAMPLES)
@click.argument("artifact", type=PATH)
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt; - reads it from standard input.")
@click.option(
    "--fill",
    metavar="TEXT",
    help="Fill the masks <extra_id_0>, <extra_id_1> … of TEXT, instead of -p; for T5, ByT5 and KEByT5.",
)
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
    fill: str | None,
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

    An encoder-decoder (T5, ByT5, KEByT5) reads the prompt and answers; it takes the likeliest token unless
    the file or a sampling option says otherwise. With --fill it fills masks: the filled texts are printed,
    then the whole text. A byte model makes one byte a token, three for a Hangul syllable (-n); bytes that
    are no text appear as U+FFFD, and the tokens that stand for masks as their ids, such as <258>.
    """
    from ..core.cores import available_cores
    from ..core.gguf_file import read_header

    if artifact.is_dir():
        raise InputError(
            f"{artifact} is a folder, and what runs is a GGUF file",
            hint=f"convert it first: kconv to-gguf {artifact}",
        )
    text = read_prompt(prompt, fill)
    if fill is not None and stops:
        raise UsageError("--stop does not go with --fill, whose output is read by masks")
    header = read_header(artifact)
    if not header.tensors:
        raise GgufError(f"{artifact} holds a vocabulary but no weights", hint="give a converted model")
    asked = question(
        artifact, header.metadata, text, fill=fill is not None, chat=chat, system=system, echo=echo
    )
    sampling = _sampling(header.metadata, wishes, greedy=greedy, answers=asked.encoder_decoder)
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
        ids = _prompt_ids(runtime, asked)
        count = token_room(
            len(ids), tokens, runtime.context_length, context, encoder_decoder=asked.encoder_decoder
        )
        if verbose:
            say(f"kconv: {sampling}", err=True)
            say(f"kconv: the prompt has {len(ids)} tokens: {asked.text!r}", err=True)
        out = None if as_json else sys.stdout
        if echo and asked.template is None:
            _show(out, asked.text)
        done = generate_text(
            runtime,
            runtime.generate(ids, sampling, count),
            TextStream((*stops, *asked.stops), trim=asked.trim),
            partial(_show, out if asked.masks is None else None),
            ends=() if asked.masks is None else ending_sentinels(asked.masks, asked.sentinels),
            names=asked.sentinels.names,
        )
        fills = _fills(runtime, asked, done)
    if as_json:
        emit_json(_to_json(artifact, asked, ids, sampling, done, fills))
    elif fills is not None:
        _show_fills(out, asked, fills)
    else:
        click.echo()
    _tell(done, len(ids), verbose=verbose, chat=asked.template is not None)


def _sampling(
    metadata: Mapping[str, Any], wishes: Mapping[str, float | None], *, greedy: bool, answers: bool
) -> Sampling:
    """What the user wishes, else what the file recommends; ``answers``: else the likeliest token.

    transformers, too, samples with an encoder-decoder only where it is told to.
    """
    wished = dict(wishes)
    if greedy:
        if wished["temperature"] or wished["repeat_penalty"] not in (None, 1):
            raise UsageError("--greedy means --temp 0 --repeat-penalty 1, but another value is given too")
        wished |= {"temperature": 0.0, "repeat_penalty": 1.0}
    recommended = sampling_in_file(metadata)
    randomness = ("temperature", "top_k", "top_p", "min_p", "seed")
    if answers and all(recommended.get(name) is None and wished[name] is None for name in randomness):
        wished["temperature"] = 0.0
    if wished["seed"] is None:
        wished["seed"] = secrets.randbits(31)
    return choose_sampling(recommended, wished)


def _prompt_ids(runtime: Runtime, asked: Question) -> list[int]:
    ids = runtime.tokenize(*asked.parts)
    if asked.masks is not None:
        check_prompt(ids, asked.masks, asked.sentinels)
    return ids


def _fills(runtime: Runtime, asked: Question, done: Generation) -> list[Fill] | None:
    """What the masks were filled with; None where there were none to fill."""
    if asked.masks is None:
        return None

    def text_of(ids: Sequence[int]) -> str:
        pieces = (token_bytes(runtime, token, asked.sentinels.names) for token in ids)
        return b"".join(pieces).decode("utf-8", "replace")

    ids = done.ids[:-1] if done.stop_reason == "end" else done.ids
    fills = read_fills(ids, asked.masks, asked.sentinels, text_of)
    left = [mask_name(fill.mask) for fill in fills if fill.text is None]
    if left:
        say(f"kconv: warning: the model put nothing in place of {', '.join(left)}", err=True)
    return fills


def _show_fills(out: TextIO | None, asked: Question, fills: Sequence[Fill]) -> None:
    """A line for each mask that was filled, then the whole text."""
    for fill in fills:
        if fill.text is not None:
            _show(out, f"{mask_name(fill.mask)}: {fill.text}\n")
    if asked.masks is not None:
        _show(out, completed(asked.masks, fills) + "\n")


def _show(out: TextIO | None, text: str) -> None:
    if out is not None and text:
        # not click's echo, which takes escape sequences out of what a pipe should get unchanged
        out.write(terminal_text(text) if out.isatty() else text)
        out.flush()


def _to_json(
    artifact: Path,
    asked: Question,
    ids: Sequence[int],
    sampling: Sampling,
    done: Generation,
    fills: Sequence[Fill] | None,
) -> dict[str, Any]:
    told: dict[str, Any] = {
        "artifact": str(artifact),
        "text": done.text,
        "ids": list(done.ids),
        "stop_reason": done.stop_reason,
        "prompt": asked.text,
        "prompt_ids": list(ids),
        "chat": asked.template is not None,
        "sampling": asdict(sampling),
        "prompt_seconds": round(done.prompt_seconds, 3),
        "seconds": round(done.seconds, 3),
    }
    if asked.masks is not None and fills is not None:
        told |= {"fills": [asdict(fill) for fill in fills], "completed": completed(asked.masks, fills)}
    return told


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
