"""``kconv to-gguf``: a checkpoint folder to GGUF files."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import UsageError
from ..core.language import _
from .console import (
    emit_json,
    end_unproven,
    plural,
    say,
    seconds_text,
    verify_command,
)
from .conversion_options import conversion_options, optimize_option, types_option
from .finished import finished_is_well
from .options import (
    OUTPUT,
    force_option,
    json_option,
    rehash_option,
    resume_option,
    scheduler_option,
    split_option,
    stream_option,
    threads_option,
    verbose_option,
)
from .sources import SOURCE_OR_OBJECTS, revision_option
from .target_options import target_options, types_or

if TYPE_CHECKING:
    from ..flows.results import Conversion
    from ..verify.proof import Proof


EXAMPLES = """\b
Examples:
  kconv to-gguf ./42dot_LLM-SFT-1.3B
  kconv to-gguf 42dot/42dot_LLM-SFT-1.3B -q q4_k_m
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q4_0 -q q8_0 -o dist/
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q4_0 -o 42dot.gguf --chat-template 42dot --modelfile
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q4_k_m --tensor-type "blk\\.[01]\\.ffn_down=q8_0"
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q4_0 --verify full
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q3_k_m,iq2_m --calibrate korean.txt
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q3_k_m --calibrate korean.txt --optimize
"""


@click.command("to-gguf", short_help="Convert a checkpoint folder to GGUF files.", epilog=EXAMPLES)
@click.argument("checkpoint", type=SOURCE_OR_OBJECTS)
@revision_option
@stream_option
@click.option(
    "-o",
    "--output",
    type=OUTPUT,
    metavar="PATH",
    help="A file if it ends in .gguf, else a folder; s3://bucket/key for an object store.  "
    "[default: <checkpoint>-<TYPE>.gguf here]",
)
@types_option("auto")
@conversion_options
@optimize_option
@click.option(
    "--verify",
    "scope",
    type=click.Choice(["quick", "full"], case_sensitive=False),
    help="Scope of the proof: quick compares a few hundred tokens, full a few thousand and every weight, "
    "as kconv verify does.  [default: quick]",
)
@click.option(
    "--no-verify",
    is_flag=True,
    help="Skip the comparison of logits with the checkpoint. Tokens are always compared.",
)
@click.option("--allow-nan", is_flag=True, help="Convert NaN and infinite weights unchanged.")
@click.option("--modelfile", is_flag=True, help="Write an Ollama Modelfile next to each output.")
@target_options
@split_option
@resume_option
@rehash_option
@scheduler_option
@threads_option
@force_option
@json_option
@verbose_option
@finished_is_well
def command(
    checkpoint: str | Path,
    stream: bool,
    output: str | Path | None,
    types: tuple[str, ...],
    pure: bool,
    tensor_types: tuple[str, ...],
    output_type: str | None,
    embedding_type: str | None,
    imatrix: Path | None,
    calibrate: tuple[Path, ...],
    optimize: bool,
    keep_wo: bool,
    scope: str | None,
    no_verify: bool,
    allow_tokenizer_mismatch: bool,
    allow_nan: bool,
    disabled_adapters: tuple[str, ...],
    chat_template: str | None,
    drop_extra_tokens: bool,
    words_as_text: bool,
    modelfile: bool,
    split_max_size: str | None,
    resume: bool,
    rehash: bool,
    scheduler: str | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    verbose: bool,
    **targets: Any,
) -> None:
    """Convert the folder CHECKPOINT, or a repository of the Hub (org/name), to GGUF files for llama.cpp.

    The vocabulary is compared with the checkpoint's own tokenizer before any weight is read. At the end every
    file is proven: its logits in llama.cpp on the CPU are compared with those of the checkpoint in fp32. A
    file whose proof fails is kept, and the exit code is 1. Next to each file <file>.manifest.json is written:
    source, options, versions, formats, proof.
    """
    if scope is not None and no_verify:
        raise UsageError("--verify and --no-verify cannot be combined", hint="leave one of them out")
    options = {
        "types": types_or(types, ("auto",), targets),
        **targets,
        "pure": pure,
        "tensor_types": tensor_types,
        "output_type": output_type,
        "embedding_type": embedding_type,
        "imatrix": imatrix,
        "calibrate": calibrate,
        "optimize": optimize,
        "keep_wo": keep_wo,
        "allow_nan": allow_nan,
        "allow_tokenizer_mismatch": allow_tokenizer_mismatch,
        "disabled_adapters": disabled_adapters,
        "chat_template": chat_template,
        "drop_extra_tokens": drop_extra_tokens,
        "words_as_text": words_as_text,
        "verify": "off" if no_verify else (scope or "quick").lower(),
        "modelfile": modelfile,
        "split_max_size": split_max_size,
        "resume": resume,
        "rehash": rehash,
        "scheduler": scheduler,
        "force": force,
        "threads": threads,
        "stream": stream,
    }
    from .telling import telling

    begun = time.monotonic()
    with telling("the files are", checkpoint, quiet=as_json) as told:
        from ..flows.convert import to_gguf

        conversion = to_gguf(checkpoint, output, **options, **told)
    seconds = time.monotonic() - begun
    modelfiles = [output.modelfile for output in conversion.outputs if output.modelfile]
    if as_json:
        made = {"seconds": round(seconds, 3), "modelfiles": [str(path) for path in modelfiles]}
        emit_json({**conversion.to_json(), **made})
    else:
        _print_end(conversion, seconds)
    end_unproven((proof.verdict, _story(proof, checkpoint)) for proof in conversion.proofs)
    if not as_json and not isinstance(output, str):
        say(_how_to_run(conversion.arch, [done.path for done in conversion.outputs], modelfiles), wrap=False)


def _print_end(conversion: Conversion, seconds: float) -> None:
    """What is left to say when all is done."""
    if not conversion.proofs:
        say("not proven, as requested (--no-verify)")
    for each in conversion.companions:
        begin = f"{each.path.name} already existed and" if each.kept else each.path.name
        say(f"{begin} belongs to these files: keep it in the same folder, they do not run without it")
    made = plural(len(conversion.outputs), "file")
    say(f"{made} in {seconds_text(seconds)}, each with a manifest next to it")


def _story(proof: Proof, checkpoint: str | Path) -> str:
    """Why a file is not proven, and how to learn more."""
    from ..report.words import cause

    command = verify_command(proof.artifact, checkpoint)
    kept = _(
        "the file was kept, and its manifest records the failure; details: {command} --report proof.html",
        command=command,
    )
    if proof.verdict == "not decided":
        kept = _(
            "the file was kept, complete, and its manifest records that nothing was decided; to prove it: "
            "{command}",
            command=command,
        )
    return f"{proof.artifact}: {cause(proof)}\n  {kept}"


_SHOWN = 3  # files; with all types there are more than thirty


def _how_to_run(arch: str, files: Sequence[Path], modelfiles: Sequence[Path]) -> str:
    from ..converters.families import embeds_texts, reads_with_encoder

    lines = ["", "To run it:"]
    for file in files[:_SHOWN]:
        name = shlex.quote(str(file))
        lines.append(f'  kconv run {name} -p "안녕하세요"')
        if reads_with_encoder(arch):  # llama-server never calls the encoder
            lines.append(f'  kconv run {name} --fill "한국의 수도는 <extra_id_0>이다."')
        elif embeds_texts(arch):
            lines.append(f"  llama-server -m {name} --embedding")
        else:
            lines.append(f"  llama-server -m {name}")
    lines += ["  and so on"] if len(files) > _SHOWN else []
    for file in modelfiles:
        # Ollama's names are plain ASCII in lower case
        model = re.sub(r"[^a-z0-9._-]+", "-", file.stem.lower()).strip("-._") or "model"
        lines.append(f"  ollama create {model} -f {shlex.quote(str(file))}")
    return "\n".join(lines)
