"""``kconv quantize``: a GGUF file to GGUF files with other types of weights."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import AlreadyFinished, OutputExists
from ..core.progress import Progress
from .console import (
    emit_json,
    end_unproven,
    plural,
    say,
    seconds_text,
)
from .conversion_options import optimize_option, split_list
from .finished import finished_is_well
from .options import (
    PATH,
    force_option,
    json_option,
    rehash_option,
    resume_option,
    split_option,
    tensor_type_options,
    threads_option,
    verbose_option,
)
from .sources import SOURCE
from .target_options import target_options

if TYPE_CHECKING:
    from ..converters.results import Output
    from ..flows.quantize import Requantization
    from ..verify.proof import Proof

EXAMPLES = """\b
Examples:
  kconv quantize 42dot_LLM-SFT-1.3B-BF16.gguf -q q4_k_m
  kconv quantize model-F16.gguf -q q4_k_m -q q6_k -o dist/ --imatrix model.imatrix.gguf
  kconv quantize model-00001-of-00003.gguf -q q8_0 --split-max-size 2G
  kconv quantize model-00001-of-00003.gguf -q copy -o model.gguf
  kconv quantize model-F32.gguf -q q4_0 --against ./checkpoint
  kconv quantize hf://org/name-GGUF/name-BF16.gguf -q q4_k_m
"""


@click.command("quantize", short_help="Convert a GGUF file to other types.", epilog=EXAMPLES)
@click.argument("source", type=SOURCE, metavar="IN.gguf")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="PATH",
    help="A file if it ends in .gguf, else a folder.  [default: <name of the source>-<TYPE>.gguf here]",
)
@click.option(
    "-q",
    "--type",
    "types",
    multiple=True,
    metavar="TYPE",
    callback=split_list,
    help="Type of the weights: any name llama-quantize knows (q8_0, q4_k_m, iq4_xs, f16 …; kconv models "
    "lists them), or copy, which keeps them unchanged. Several -q (or a list with commas) make several "
    "files from one read.",
)
@tensor_type_options
@click.option(
    "--imatrix",
    type=PATH,
    metavar="FILE",
    help="Importance data of this model, made by kconv imatrix or llama-imatrix.",
)
@optimize_option
@click.option(
    "--allow-requantize",
    is_flag=True,
    help="Allow a source that is already quantized; the result is worse than from the F32, F16 or BF16 file.",
)
@click.option("--allow-nan", is_flag=True, help="Write NaN and infinite weights unchanged.")
@target_options
@split_option
@click.option("--keep-split", is_flag=True, help="Keep the source's split into parts.")
@click.option(
    "--against", type=SOURCE, metavar="CHECKPOINT", help="Prove each file against this checkpoint right away."
)
@resume_option
@rehash_option
@threads_option
@force_option
@json_option
@verbose_option
@finished_is_well
def command(
    source: str | Path,
    against: str | Path | None,
    as_json: bool,
    verbose: bool,
    output: Path | None,
    **options: Any,
) -> None:
    """Write the GGUF file IN.gguf with other types of weights and everything else unchanged.

    The source is F32, F16 or BF16, in one file or split into parts (name any of them), here or on the Hub
    (hf://org/name/x.gguf). The output is byte-identical to that of llama-quantize, but for --optimize and
    formats chosen by measured losses. Next to each file (or the first part) <file>.manifest.json is written.
    """
    from .progress import announce, shown_progress
    from .telling import Teller

    begun = time.monotonic()
    with shown_progress() as progress, Teller(progress, quiet=as_json) as teller:
        from ..flows.quantize import quantize

        try:
            made = quantize(source, output, **options, progress=progress, announce=announce, observer=teller)
        except AlreadyFinished as finished:
            if against is None:
                raise
            path, checkpoint = shlex.quote(str(finished.paths[0])), shlex.quote(str(against))
            hint = f"prove it with kconv verify {path} --against {checkpoint}"
            raise OutputExists(finished.message, hint=hint) from finished
        seconds = time.monotonic() - begun
        proofs = []
        for number, each in enumerate(made.outputs if against else (), 1):
            teller.proving(each.path, each.type, number, len(made.outputs))
            threads, rehash = options["threads"], options["rehash"]
            proofs.append(_proof(each, str(against), progress, threads=threads, rehash=rehash))
            teller.proven(proofs[-1])
    if as_json:
        proven = [proof.to_json() for proof in proofs]
        emit_json({**made.to_json(), "proofs": proven, "seconds": round(seconds, 3)})
    else:
        _print_end(made, seconds, proven=bool(proofs))
    from ..report.words import cause

    end_unproven((proof.verdict, f"{proof.artifact}: {cause(proof)}") for proof in proofs)


def _proof(
    output: Output, checkpoint: str, progress: Progress, *, threads: int | None, rehash: bool
) -> Proof:
    """The proof of one model, which its manifest has afterwards."""
    from ..converters.hashes import SourceHashes
    from ..converters.manifest import record_proof
    from ..core.input_files import InputFile
    from ..verify import verify
    from .progress import announce

    files = [InputFile(path) for path in output.paths]
    with SourceHashes(files) as hashes:
        proof = verify(
            output.path, checkpoint, rehash=rehash, threads=threads, progress=progress, announce=announce
        )
        record_proof(output.manifest, proof.to_manifest(), hashes.result(progress))
    return proof


def _print_end(made: Requantization, seconds: float, *, proven: bool) -> None:
    """What is left to say when all is done."""
    say(f"{plural(len(made.outputs), 'model')} in {seconds_text(seconds)}, each with a manifest next to it")
    if not proven:
        name = shlex.quote(str(made.outputs[0].path))
        say(f"to prove it: kconv verify {name} --against CHECKPOINT", wrap=False)
