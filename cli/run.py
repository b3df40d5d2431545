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

_MAX_PROMPT = 64 << 20  # bytes from standard input


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
    from ..converters.gguf_writer import available_cores
    from ..core.gguf_file import read_header

    if artifact.is_dir():
        raise InputError(
            f"{artifact} is a folder, and what runs is a GGUF file",
            hint=f"convert it first: kconv to-gguf {artifact}",
        )
    text = _read_prompt(prompt)
    header = read_header(artifact)
    if not header.tensors:
        raise GgufError(f"{artifact} holds a vocabulary but no weights", hint="give a converted model")
    sampling = _sampling(header.metadata, wishes, greedy=greedy)
    template = _template(artifact, header.metadata, chat=chat, system=system)
    full = _whole_prompt(header.metadata, template, text, system)
    stops = (*stops, *_template_stops(template))
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
        count = _room(len(ids), tokens, runtime.context_length, context)
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


def _read_prompt(prompt: str | None) -> str:
    """The prompt as text; ``-`` stands for standard input, whose last newline does not count."""
    if prompt is None:
        raise UsageError("no prompt given", hint="pass -p TEXT, or -p - to read standard input")
    if prompt != "-":
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("the prompt is not UTF-8", hint="set the terminal's encoding to UTF-8") from None
        return prompt
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


def _sampling(metadata: Mapping[str, Any], wishes: Mapping[str, float | None], *, greedy: bool) -> Sampling:
    wished = dict(wishes)
    if greedy:
        if wished["temperature"] or wished["repeat_penalty"] not in (None, 1):
            raise UsageError("--greedy means --temp 0 --repeat-penalty 1, but another value is given too")
        wished |= {"temperature": 0.0, "repeat_penalty": 1.0}
    if wished["seed"] is None:
        wished["seed"] = secrets.randbits(31)
    return choose_sampling(sampling_in_file(metadata), wished)


def _template(
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
    if chat is None and sys.stderr is not None and sys.stderr.isatty():
        say("kconv: asking through the file's chat template; --no-chat completes plain text", err=True)
    return template


def _whole_prompt(metadata: Mapping[str, Any], template: str | None, text: str, system: str | None) -> str:
    """What the model is to see, as text."""
    # This vocabulary cannot put the space in front that the checkpoint's tokenizer puts there
    # (converters write this key); chat templates of such files begin with it themselves.
    space = " " if metadata.get("kconv.leading_space") is True else ""
    if template is None:
        return space + text
    from ..vocab.templates import render_chat

    messages = [{"role": "system", "content": system}] if system is not None else []
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
        return str(tokens[number])
    return ""


def _template_stops(template: str | None) -> tuple[str, ...]:
    """Texts that end an answer under a prompt format we know."""
    if template is None:
        return ()
    from ..vocab.templates import format_of_template

    known = format_of_template(template)
    return () if known is None else known.stop


def _room(prompt: int, wanted: int, trained: int, context: int | None) -> int:
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
