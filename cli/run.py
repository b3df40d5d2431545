"""``kconv run``: generate text from a GGUF through llama.cpp, from an ONNX folder through onnxruntime."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ..core.errors import GgufError, InputError, UsageError
from ..core.progress import Progress
from ..runtimes import KV_TYPES
from ..runtimes.generation import Runtime, choose_sampling, sampling_in_file
from ..runtimes.sampling import Sampling
from .answers import answer, show_answer
from .console import show_log
from .errors import heed_reader
from .front_ends import front_end_for
from .options import PATH, json_option, threads_option, verbose_option
from .progress import shown_progress
from .prompts import question, read_prompt

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


@dataclass(frozen=True)
class _Loaded:
    """What is to run, its metadata under a GGUF's keys, and what starts the runtime.

    Its encoder, if any, has a position for ``factor`` tokens.
    """

    path: Path
    metadata: Mapping[str, Any]
    start: Callable[[Progress], AbstractContextManager[Runtime]]
    factor: int = 1


@click.command("run", short_help="Generate text with a GGUF file or an ONNX folder.", epilog=EXAMPLES)
@click.argument("artifact", type=PATH)
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
    help="Front end of a GBST model.  [default: the gbst-….gguf beside ARTIFACT that belongs to it]",
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
    callback=_finite,
    metavar="T",
    help="Temperature; 0 always takes the most likely token.",
)
@click.option(
    "--top-k", type=click.IntRange(0, 1_000_000), metavar="K", help="Choose among the K likeliest; 0: all."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1),
    callback=_finite,
    metavar="P",
    help="Choose among the likeliest tokens that together reach P.",
)
@click.option(
    "--min-p",
    type=click.FloatRange(0, 1),
    callback=_finite,
    metavar="P",
    help="Leave out tokens less likely than P times the likeliest.",
)
@click.option(
    "--repeat-penalty",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
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
    help="Context size in tokens (of a GBST encoder: in positions, each a few bytes).  [default: what the "
    "prompt and -n need]",
)
@click.option(
    "--kv-type",
    type=click.Choice(KV_TYPES, case_sensitive=False),
    help="Type of the attention cache in llama.cpp; f32 is closest to the checkpoint.  [default: f16]",
)
@threads_option
@json_option
@verbose_option
def command(
    artifact: Path,
    prompt: str | None,
    fill: str | None,
    front_end: Path | None,
    tokens: int,
    chat: bool | None,
    system: str | None,
    stops: tuple[str, ...],
    echo: bool,
    greedy: bool,
    context: int | None,
    kv_type: str | None,
    threads: int | None,
    as_json: bool,
    verbose: bool,
    **wishes: float | None,
) -> None:
    """Generate text with ARTIFACT: a GGUF file through llama.cpp, an ONNX folder through onnxruntime.

    A file with a chat template is asked: the prompt becomes the user's turn, and only the answer is
    printed. Without a template, or with --no-chat, the prompt is completed as plain text. Sampling is the
    file's own recommendation where it carries one, else llama.cpp's default; --verbose shows it.

    An encoder-decoder (T5, KEByT5, GBST-KEByT5) reads the prompt and answers; it takes the likeliest
    token unless the file or a sampling option says otherwise. With --fill it fills masks: the filled texts
    are printed, then the whole text. A byte model makes one byte a token, three for a Hangul syllable (-n);
    bytes that are no text appear as U+FFFD, and the tokens that stand for masks as their ids, such as <258>.
    """
    text = read_prompt(prompt, fill)
    if fill is not None and stops:
        raise UsageError("--stop does not go with --fill, whose output is read by masks")
    if artifact.is_dir():
        loaded = _onnx(artifact, front_end, kv_type, threads)
    else:
        loaded = _gguf(artifact, front_end, context, kv_type or "f16", threads, verbose=verbose)
    metadata = loaded.metadata
    asked = question(loaded.path, metadata, text, fill=fill is not None, chat=chat, system=system, echo=echo)
    sampling = _sampling(metadata, wishes, greedy=greedy, answers=asked.encoder_decoder)
    with shown_progress() as shown, loaded.start(_heeding(shown)) as runtime:
        given = answer(
            runtime,
            asked,
            sampling,
            stops,
            tokens=tokens,
            context=context,
            factor=loaded.factor,
            echo=echo,
            show=not as_json,
            verbose=verbose,
        )
    show_answer(loaded.path, given, as_json=as_json, verbose=verbose)


def _heeding(progress: Progress) -> Progress:
    """The same, which ends the work where whoever was to read the answer is gone."""

    def told(stage: str, done: int, total: int) -> None:
        heed_reader()
        progress(stage, done, total)

    return told


def _gguf(
    artifact: Path,
    front_end: Path | None,
    context: int | None,
    kv_type: str,
    threads: int | None,
    *,
    verbose: bool,
) -> _Loaded:
    from ..core.cores import available_cores
    from ..core.gguf_counts import check_counts
    from ..core.gguf_split import read_model
    from ..runtimes.llama import LlamaRuntime

    model = read_model(artifact)
    path, header = model.paths[0], model.header
    if not header.tensors:
        raise GgufError(f"{path} holds a vocabulary but no weights", hint="give a converted model")
    check_counts(path, header)
    front = front_end_for(path, header.metadata, front_end)

    def start(progress: Progress) -> LlamaRuntime:
        return LlamaRuntime(
            path,
            threads=threads or available_cores(),
            context=context,
            kv_type=kv_type.lower(),
            log=show_log if verbose else None,
            front=None if front is None else front.embed,
            progress=progress,
        )

    return _Loaded(path, header.metadata, start, 1 if front is None else front.factor)


def _onnx(artifact: Path, front_end: Path | None, kv_type: str | None, threads: int | None) -> _Loaded:
    from ..core.cores import available_cores
    from ..runtimes.onnx_folder import holds_onnx

    if not holds_onnx(artifact):
        raise InputError(
            f"{artifact} is a folder without ONNX files, and what runs is a GGUF file or an ONNX folder",
            hint=f"convert it first: kconv to-gguf {artifact}",
        )
    for option, given in (("--front-end", front_end), ("--kv-type", kv_type)):
        if given is not None:
            raise UsageError(
                f"{option} is for GGUF files; an ONNX folder has its own", hint=f"leave out {option}"
            )
    from ..runtimes.onnx import OnnxRuntime, read_onnx_model

    model = read_onnx_model(artifact)
    workers = threads or available_cores()

    def start(progress: Progress) -> OnnxRuntime:
        return OnnxRuntime(model, threads=workers, progress=progress)

    return _Loaded(artifact, model.metadata, start, model.factor)


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
