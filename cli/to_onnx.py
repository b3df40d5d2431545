"""``kconv to-onnx``: a checkpoint folder to a folder of ONNX files."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import UsageError
from ..core.language import _
from .console import (
    emit_json,
    end_unproven,
    say,
    seconds_text,
    size_text,
    verify_command,
)
from .conversion_options import chat_template_option, drop_extra_tokens_option
from .finished import finished_is_well
from .options import (
    PATH,
    force_option,
    json_option,
    rehash_option,
    resume_option,
    stream_option,
    threads_option,
    verbose_option,
)
from .sources import SOURCE_OR_OBJECTS, revision_option

if TYPE_CHECKING:
    from ..flows.results import OnnxConversion

EXAMPLES = """\b
Examples:
  kconv to-onnx ./42dot_LLM-SFT-1.3B
  kconv to-onnx ./42dot_LLM-SFT-1.3B -q q4_0 -o 42dot-onnx
  kconv to-onnx ./KEByT5-base -q f32 --verify full
  kconv to-onnx ./42dot_LLM-SFT-1.3B -q q4_0 --layout transformers.js -o 42dot-web
  kconv to-onnx ./42dot_LLM-SFT-1.3B -q q4_0 --imatrix 42dot-statistics.gguf --optimize
  kconv to-onnx ./42dot_LLM-SFT-1.3B -q q4_0 --calibrate korean.txt --optimize
"""


def _folder(context: click.Context, parameter: click.Parameter, output: Path | None) -> Path | None:
    if output is not None and output.suffix.lower() in (".onnx", ".gguf") and not output.is_dir():
        raise UsageError(
            f"-o {output} is the name of a file, expected a folder: ONNX models are several files",
            hint=f"pass -o {output.with_suffix('')}",
        )
    return output


def _one_type(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> str:
    if len(names) > 1:
        raise UsageError(
            f"-q was given {len(names)} times ({', '.join(names)}), but a folder has one type",
            hint="run kconv to-onnx once for each type",
        )
    return names[0] if names else "auto"


@click.command("to-onnx", short_help="Convert a checkpoint folder to ONNX files.", epilog=EXAMPLES)
@click.argument("checkpoint", type=SOURCE_OR_OBJECTS)
@revision_option
@stream_option
@click.option(
    "-o",
    "--output",
    type=PATH,
    callback=_folder,
    metavar="DIR",
    help="Folder to create; it must be new or empty.  [default: <checkpoint>-<TYPE>-ONNX here]",
)
@click.option(
    "-q",
    "--type",
    "type_name",
    multiple=True,
    callback=_one_type,
    metavar="TYPE",
    help="auto, f32, f16, q8_0 or q4_0; auto keeps the checkpoint's precision, F32 or F16 (F32 for T5 "
    "and other models that would overflow in F16). On x86 onnxruntime computes f16 in F32, with the memory "
    "of f32; q8_0 is smaller and faster there.  [default: auto]",
)
@click.option(
    "--layout",
    default="optimum",
    metavar="NAME",
    help="File naming: that of optimum (common with onnxruntime) or of transformers.js.  [default: optimum]",
)
@click.option(
    "--flavour",
    metavar="NAME",
    help="Whose operators the graphs have: standard (ONNX's own, opset 23) or contrib (onnxruntime's: older "
    "versions, GPUs, browsers, onnxruntime-genai).  [default: contrib for transformers.js, else standard]",
)
@click.option(
    "--activations",
    default="f32",
    metavar="TYPE",
    help="What flows through the graph, and the cache: f32, or f16 for GPUs, in decoders of the types f16, "
    "q8_0 and q4_0. onnxruntime on x86 computes f16 in F32, so it is slower there.  [default: f32]",
)
@click.option(
    "--accuracy-level",
    type=click.IntRange(0, 4),
    default=4,
    metavar="N",
    help="How onnxruntime multiplies quantized matrices: 4 quantizes the activations to 8 bits first, as "
    "llama.cpp does; 0 keeps them in F32, which is more accurate and much slower.  [default: 4]",
)
@click.option(
    "--verify",
    "scope",
    type=click.Choice(["quick", "full"], case_sensitive=False),
    help="Scope of the proof: quick compares a few hundred tokens, full a few thousand.  [default: quick]",
)
@click.option("--no-verify", is_flag=True, help="Skip the proof.")
@click.option(
    "--imatrix",
    type=PATH,
    metavar="FILE",
    help="Full statistics of this model's inputs, from kconv imatrix --full: what --optimize chooses by.",
)
@click.option(
    "--calibrate",
    multiple=True,
    type=PATH,
    metavar="FILE",
    help="Compute these statistics first, by running the checkpoint on this UTF-8 text (on samples of it if "
    "it is long), and keep them beside the output. Repeatable.",
)
@click.option(
    "--optimize",
    is_flag=True,
    help="Choose the codes of q4_0 and q8_0 so that errors cancel for the inputs measured, as kconv to-gguf "
    "does: same size, less loss. Needs --calibrate or --imatrix.",
)
@chat_template_option
@drop_extra_tokens_option
@click.option("--allow-nan", is_flag=True, help="Convert NaN and infinite weights unchanged.")
@resume_option
@rehash_option
@threads_option
@force_option
@json_option
@verbose_option
@finished_is_well
def command(
    checkpoint: str | Path,
    stream: bool,
    output: Path | None,
    type_name: str,
    layout: str,
    flavour: str | None,
    activations: str,
    accuracy_level: int,
    scope: str | None,
    no_verify: bool,
    allow_nan: bool,
    imatrix: Path | None,
    calibrate: tuple[Path, ...],
    optimize: bool,
    chat_template: str | None,
    resume: bool,
    rehash: bool,
    drop_extra_tokens: bool,
    threads: int | None,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Convert the folder CHECKPOINT, or a repository of the Hub (org/name), to a folder of ONNX files.

    The folder contains the graphs, one file with their weights, the configuration and the tokenizer, under
    the names optimum gives them. At the end it is proven: its logits in onnxruntime on the CPU, for the whole
    text at once and token by token through the cache, are compared with those of the checkpoint in fp32. A
    folder whose proof fails is kept, and the exit code is 1. Its kconv.manifest.json records source, options,
    versions, formats and proof. --force only replaces a folder that kconv made.
    """
    if scope is not None and no_verify:
        raise UsageError("--verify and --no-verify cannot be combined", hint="leave one of them out")
    options: dict[str, Any] = {
        "type": type_name,
        "layout": layout,
        "flavour": flavour,
        "activations": activations,
        "accuracy_level": accuracy_level,
        "allow_nan": allow_nan,
        "chat_template": chat_template,
        "imatrix": imatrix,
        "calibrate": calibrate,
        "optimize": optimize,
        "drop_extra_tokens": drop_extra_tokens,
        "verify": "off" if no_verify else (scope or "quick").lower(),
        "resume": resume,
        "rehash": rehash,
        "force": force,
        "threads": threads,
        "stream": stream,
    }
    from .telling import telling

    begun = time.monotonic()
    with telling("the folder is", checkpoint, quiet=as_json) as told:
        from ..flows.to_onnx import to_onnx

        conversion = to_onnx(checkpoint, output, **options, **told)
    seconds = time.monotonic() - begun
    if as_json:
        emit_json({**conversion.to_json(), "seconds": round(seconds, 3)})
    else:
        _print_end(conversion, seconds)
    if conversion.proof is not None:
        proof = conversion.proof
        command = verify_command(conversion.path, checkpoint)
        story = _("details: {command} --report proof.html", command=command)
        if proof.verdict == "not decided":
            story = _("the folder is complete; to prove it: {command}", command=command)
        from ..report.words import cause

        end_unproven([(proof.verdict, f"{conversion.path}: {cause(proof)}\n  {story}")])
    if not as_json:
        say(f'\nTo run it:\n  kconv run {shlex.quote(str(conversion.path))} -p "안녕하세요"', wrap=False)


def _print_end(conversion: OnnxConversion, seconds: float) -> None:
    """What is left to say when all is done."""
    if conversion.proof is None:
        say("not proven, as requested (--no-verify)")
    told = _(
        "{folder}: {type}, {bits:.2f} bits per weight, {size} in {count} files, {time}",
        folder=conversion.path,
        type=conversion.type.upper(),
        bits=conversion.bits_per_weight,
        size=size_text(conversion.bytes),
        count=len(conversion.files),
        time=seconds_text(seconds),
    )
    say(told)
