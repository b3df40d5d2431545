"""``kconv run``: generate text from a GGUF through llama.cpp, from an ONNX folder through onnxruntime."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import click

from ..core.progress import Progress
from ..runtimes import KV_TYPES
from .answers import show_answer, show_note, show_text
from .console import show_log
from .errors import check_output_open
from .options import PATH, json_option, threads_option, verbose_option
from .progress import shown_progress
from .prompts import read_prompt
from .sources import SOURCE, revision_option

EXAMPLES = """\b
Examples:
  kconv run 42dot_LLM-SFT-1.3B-Q4_0.gguf -p "서울의 명소를 알려줘."
  kconv run eagle-3b-preview-Q8_0.gguf --no-chat -p "대한민국의 수도는" -n 64 --greedy
  cat question.txt | kconv run model.gguf -p - --json
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
    default=256,
    show_default=True,
    metavar="N",
    help="Generate at most N tokens; -1: until the model ends or its context is full.",
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
    "and -n need]",
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
    prompt: str | None,
    fill: str | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Generate text with ARTIFACT: a GGUF file through llama.cpp, an ONNX folder through onnxruntime.

    If the file has a chat template, the prompt becomes the user's message and only the answer is printed.
    Without a template, or with --no-chat, the prompt is completed as plain text. Sampling settings are those
    the file recommends, if any, otherwise llama.cpp's defaults; --verbose shows them.

    An encoder-decoder (T5, KEByT5, GBST-KEByT5) reads the prompt and answers; it picks the most likely token
    unless the file or a sampling option sets otherwise. With --fill it fills masks: the filled-in texts are
    printed, then the complete text. Byte models generate one byte per token, three per Hangul syllable (-n);
    invalid bytes are shown as U+FFFD, and mask tokens as their ids, such as <258>.
    """
    text = read_prompt(prompt, fill)
    from ..flows.generate import generate

    with shown_progress() as shown:
        answer = generate(
            artifact,
            text,
            fill=fill is not None,
            show=_nowhere if as_json or fill is not None else show_text,
            announce=partial(show_note, verbose=verbose),
            log=show_log if verbose else None,
            progress=_until_output_closes(shown),
            **options,
        )
    show_answer(answer, as_json=as_json, verbose=verbose)


def _nowhere(text: str) -> None:
    """Print nothing: JSON and filled masks are read at the end."""


def _until_output_closes(progress: Progress) -> Progress:
    """The same, which ends the work where whoever was to read the answer is gone."""

    def checked(stage: str, done: int, total: int) -> None:
        check_output_open()
        progress(stage, done, total)

    return checked
