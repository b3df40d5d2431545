"""``kconv run``: generate text from a GGUF through llama.cpp, from an ONNX folder through onnxruntime."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..core.errors import EmbedsOnly, UsageError
from ..core.progress import Progress
from ..runtimes import KV_TYPES
from .answers import show_answer, show_note, show_text
from .console import emit_json, show_log
from .errors import check_output_open
from .options import PATH, json_option, threads_option, verbose_option
from .progress import Shown, shown_progress
from .prompts import in_a_terminal, read_prompt
from .sources import SOURCE, revision_option

EXAMPLES = """\b
Examples:
  kconv run 42dot_LLM-SFT-1.3B-Q4_0.gguf                              # a conversation
  kconv run 42dot_LLM-SFT-1.3B-Q4_0.gguf "서울의 명소를 알려줘."
  kconv run eagle-3b-preview-Q8_0.gguf --no-chat -p "대한민국의 수도는" -n 64 --greedy
  kconv run model.gguf --json < question.txt
  kconv run kebyt5-base-preview-Q8_0.gguf --fill "한국의 수도는 <extra_id_0>이다."
  kconv run t5-translator-Q8_0.gguf -p "translate English to German: Good morning."
  kconv run ./42dot_LLM-SFT-1.3B-onnx -p "서울의 명소를 알려줘."
"""


def _finite(context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """``value``, unless it is NaN, which every range of click's lets pass, or infinite."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a number", context, option)
    return value


@click.command("run", short_help="Generate text with a GGUF file or an ONNX folder.", epilog=EXAMPLES)
@click.argument("artifact", type=SOURCE)
@revision_option
@click.argument("words", nargs=-1, metavar="[PROMPT]")
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt; - reads it from standard input.")
@click.option(
    "--fill",
    metavar="TEXT",
    help="Fill the masks <extra_id_0>, <extra_id_1> … of TEXT, instead of -p; for T5, ByT5 and KEByT5.",
)
@click.option(
    "--front-end",
    type=PATH,
    metavar="FILE",
    help="Front end of a GBST model.  [default: the matching gbst-….gguf next to ARTIFACT]",
)
@click.option(
    "-n",
    "--tokens",
    type=click.IntRange(min=-1),
    metavar="N",
    help="Generate at most N tokens; -1: until the model ends or its context is full.  [default: 256; in a "
    "conversation -1]",
)
@click.option(
    "--chat/--no-chat",
    default=None,
    help="Send the prompt as a user message through the file's chat template, or complete it as plain "
    "text.  [default: --chat if the file has a template]",
)
@click.option("--system", metavar="TEXT", help="System prompt of the chat.  [default: the template's own]")
@click.option("--stop", "stops", multiple=True, metavar="TEXT", help="Stop before this text. Repeatable.")
@click.option("--echo", is_flag=True, help="In plain-text mode, print the prompt before the completion.")
@click.option(
    "--temp",
    "temperature",
    type=click.FloatRange(min=0),
    callback=_finite,
    metavar="T",
    help="Temperature; 0 always picks the most likely token.",
)
@click.option(
    "--top-k",
    type=click.IntRange(0, 1_000_000),
    metavar="K",
    help=("Sample from the K most likely tokens; 0: all."),
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    callback=_finite,
    metavar="P",
    help="Sample from the most likely tokens whose probabilities add up to P.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    callback=_finite,
    metavar="P",
    help="Exclude tokens less likely than P times the most likely one.",
)
@click.option(
    "--repeat-penalty",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    metavar="R",
    help="Penalize tokens that occurred among the last 64; 1: off.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**31 - 1),
    metavar="N",
    help=("Random seed; the same seed gives the same text."),
)
@click.option("--greedy", is_flag=True, help="Always the most likely token: --temp 0 --repeat-penalty 1.")
@click.option(
    "--ctx",
    "context",
    type=click.IntRange(1, 10_000_000),
    metavar="N",
    help="Context size in tokens (GBST: in positions, each a few bytes).  [default: as much as the prompt "
    "and -n need; in a conversation 4096, or what the model was trained with]",
)
@click.option(
    "--kv-type",
    type=click.Choice(KV_TYPES, case_sensitive=False),
    help="Type of llama.cpp's attention cache; f32 is closest to the checkpoint.  [default: f16]",
)
@threads_option
@json_option
@verbose_option
def command(
    artifact: str | Path,
    words: tuple[str, ...],
    prompt: str | None,
    fill: str | None,
    tokens: int | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Generate text with ARTIFACT: a GGUF file through llama.cpp, an ONNX folder through onnxruntime.

    Without a PROMPT a conversation begins (in a terminal; else the prompt is standard input). Enter sends,
    Alt-Enter begins a new line, Ctrl-C stops an answer, /help lists what else there is.

    If the file has a chat template, the prompt becomes the user's message and only the answer is printed.
    Without a template, or with --no-chat, the prompt is completed as plain text. Sampling settings are those
    the file recommends, if any, otherwise llama.cpp's defaults; --verbose shows them.

    An encoder-decoder (T5, KEByT5, GBST-KEByT5) reads the prompt and answers; it picks the most likely token
    unless the file or a sampling option sets otherwise. With --fill it fills masks: the filled-in texts are
    printed, then the complete text. Byte models generate one byte per token, three per Hangul syllable (-n);
    invalid bytes are shown as U+FFFD, and mask tokens as their ids, such as <258>.

    An encoder (BERT, RoBERTa, XLM-RoBERTa) writes no text: its embedding of the prompt is printed as JSON, a
    vector of length 1.
    """
    if tokens == 0 and not as_json:  # which shows the prompt's tokens
        raise UsageError(
            "-n 0 would write nothing", hint="-n -1: until the model ends or its context is full"
        )
    if prompt is None and fill is None and words:
        prompt = " ".join(words)
    elif words:
        raise UsageError(
            f"{'-p' if fill is None else '--fill'} and the prompt {' '.join(words)!r} cannot be combined",
            hint="pass one of them",
        )
    path = _here(artifact)
    if prompt is None and fill is None and not as_json and in_a_terminal():
        _converse(path, tokens, options, verbose=verbose)
        return
    text = ""
    try:
        with shown_progress() as shown:
            text = _asked(path, prompt, fill)
            from ..flows.generate import generate

            answer = generate(
                path,
                text,
                fill=fill is not None,
                tokens=256 if tokens is None else tokens,
                show=_nowhere if as_json or fill is not None else _shown_alone(shown),
                announce=partial(show_note, verbose=verbose),
                log=show_log if verbose else None,
                progress=_until_output_closes(shown),
                **options,
            )
    except EmbedsOnly:
        if fill is not None:
            raise UsageError(
                "--fill is for encoder-decoders; this model embeds texts and writes none"
            ) from None
        _show_embedding(path, text, options["threads"], as_json=as_json)
        return
    show_answer(answer, as_json=as_json, verbose=verbose)


def _here(artifact: str | Path) -> Path:
    """The file or folder, downloaded where it is on the Hub."""
    if isinstance(artifact, Path):
        return artifact
    from ..hub.artifact import local_artifact

    with shown_progress() as shown:
        return local_artifact(artifact, shown)


def _asked(path: Path, prompt: str | None, fill: str | None) -> str:
    """The prompt. Where there is none, what is wrong with the file comes first: no prompt mends that."""
    try:
        return read_prompt(prompt, fill)
    except UsageError:
        from ..runtimes.loading import open_artifact

        with contextlib.suppress(EmbedsOnly):
            open_artifact(path)
        raise


def _converse(artifact: Path, tokens: int | None, options: dict[str, Any], *, verbose: bool) -> None:
    """A conversation until the user leaves."""
    if options.pop("echo"):
        raise UsageError("--echo is for one prompt, not for a conversation")
    from .chat import converse

    with contextlib.ExitStack() as stack:
        with shown_progress() as shown:
            from ..flows.conversation import open_conversation
            from ..flows.generate import WISHES

            wishes = {name: options.pop(name) for name in WISHES}
            conversation = open_conversation(
                artifact,
                tokens=-1 if tokens is None else tokens,
                wishes=wishes,
                announce=partial(show_note, verbose=verbose),
                log=show_log if verbose else None,
                progress=shown,
                **options,
            )
            loaded = stack.enter_context(conversation)
        converse(loaded)


def _show_embedding(path: Path, text: str, threads: int | None, *, as_json: bool) -> None:
    """A line of JSON, which programs read and people see the beginning of."""
    with shown_progress():
        from ..flows.embed import embed

        done = embed(path, text, threads=threads)
    if as_json:
        emit_json(done.to_json())
    else:
        click.echo(json.dumps(done.embedding))


def _nowhere(text: str) -> None:
    """Print nothing: JSON and filled masks are read at the end."""


def _shown_alone(shown: Shown) -> Callable[[str], None]:
    """Shows the answer as it comes, and no line below it that says that it comes."""

    def show(text: str) -> None:
        shown.pause()
        show_text(text)

    return show


def _until_output_closes(progress: Progress) -> Progress:
    """The same, which ends the work where whoever was to read the answer is gone."""

    def checked(stage: str, done: int, total: int) -> None:
        check_output_open()
        progress(stage, done, total)

    return checked
