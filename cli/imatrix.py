"""``kconv imatrix``: importance data of a checkpoint, for quantizing it better."""

from __future__ import annotations

import contextlib
import shlex
import time
from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from .console import emit_json, plural, say, seconds_text
from .options import PATH, force_option, json_option, resume_option, threads_option, verbose_option
from .sources import SOURCE, revision_option

EXAMPLES = """\b
Examples:
  kconv imatrix ./42dot_LLM-SFT-1.3B --text korean.txt
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q4_k_m --imatrix 42dot_LLM-SFT-1.3B-imatrix.gguf
  kconv imatrix ./42dot_LLM-SFT-1.3B --text korean.txt --full
  llama-quantize --imatrix 42dot_LLM-SFT-1.3B-imatrix.gguf model-F32.gguf model-Q4_K_M.gguf q4_k_m
"""


@click.command(
    "imatrix", short_help=("Measure which weights matter, for better quantization."), epilog=EXAMPLES
)
@click.argument("checkpoint", type=SOURCE)
@revision_option
@click.option(
    "--text",
    "texts",
    multiple=True,
    required=True,
    type=PATH,
    metavar="FILE",
    help="UTF-8 text similar to what the model will be used on; for an encoder-decoder also pairs, one "
    "source<TAB>target per line. Repeatable.",
)
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="PATH",
    help="The file to write.  [default: <checkpoint>-imatrix.gguf here]",
)
@click.option(
    "--chunks",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="N",
    help="Maximum number of windows to read, spread evenly over the text.",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    metavar="N",
    help="Tokens per window.  [default: 512, or the model's context]",
)
@click.option(
    "--full",
    is_flag=True,
    help="Also record how inputs correlate, for --optimize: a large file that contains the imatrix.",
)
@threads_option
@resume_option
@force_option
@json_option
@verbose_option
def command(
    checkpoint: str | Path,
    texts: tuple[Path, ...],
    output: Path | None,
    chunks: int,
    window: int | None,
    full: bool,
    threads: int | None,
    resume: bool,
    force: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Measure on text which weights of the folder CHECKPOINT matter, and write the result as an imatrix.

    The inputs of every matrix are recorded while transformers runs the model on the text in fp32, with one
    layer in memory at a time. The file is an imatrix in llama.cpp's GGUF format; kconv and llama-quantize
    accept it with --imatrix. Works for every family kconv converts, including encoder-decoders.
    """
    begun = time.monotonic()
    if resume and not full:
        raise UsageError(
            "--resume goes on with full statistics, behind the last layer that was measured",
            hint="add --full, or leave it out: an imatrix alone is measured anew",
        )
    path, summary = _made(
        checkpoint, texts, output, chunks, window, threads, full=full, resume=resume, force=force
    )
    seconds = round(time.monotonic() - begun, 3)
    if as_json:
        emit_json({"path": str(path), **summary, "seconds": seconds})
        return
    counted = f"{plural(summary['tensors'], 'tensor')}, {plural(summary['tokens'], 'token')}"
    say(f"{path}: {counted} in {plural(summary['chunks'], 'chunk')}, {seconds_text(seconds)}")
    words = ["kconv", "to-gguf", str(checkpoint), "-q", "q4_k_m", "--imatrix", str(path)]
    words += ["--optimize"] if full else []
    say(f"\nTo use it:\n  {shlex.join(words)}", wrap=False)


def _made(
    checkpoint: str | Path,
    texts: tuple[Path, ...],
    output: Path | None,
    chunks: int,
    window: int | None,
    threads: int | None,
    *,
    full: bool,
    resume: bool,
    force: bool,
) -> tuple[Path, dict[str, Any]]:
    """The file written, and a summary of it."""
    from ..core.files import atomic_file
    from .progress import announce, shown_progress

    if output is not None and output.suffix != ".gguf":
        raise UsageError(
            f"-o {output}: expected a name that ends in .gguf, the current format of imatrix files"
        )
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(shown_progress())
        from ..converters.targets import checkpoint_name
        from ..core.reading import open_checkpoint
        from ..flows.full_statistics import resumable
        from ..flows.importance import gather, named_texts
        from ..hub.checkpoint import local_checkpoint
        from ..quant.imatrix_file import write_imatrix

        named = named_texts(texts)
        checkpoint = local_checkpoint(checkpoint, progress)
        kind = "statistics" if full else "imatrix"
        path = output or Path(f"{checkpoint_name(open_checkpoint(checkpoint))}-{kind}.gguf")
        # opened first, so that a folder one may not write to does not cost the pass
        temporary = stack.enter_context(atomic_file(path, force=force))
        collected = stack.enter_context(resumable(path, resume=resume)) if full else None
        activations, arch = gather(
            checkpoint,
            named,
            chunks=chunks,
            window=window,
            threads=threads,
            progress=progress,
            announce=announce,
            collected=collected,
        )
        if collected is None:
            write_imatrix(temporary, activations, arch=arch, force=True)
        else:
            collected.write(temporary, activations, arch=arch, texts=named, force=True)
    return path, {
        "architecture": arch,
        "tensors": len(activations.sums),
        "datasets": list(activations.datasets),
        "chunks": activations.chunks,
        "chunk_size": activations.chunk_size,
        "tokens": max((int(counts.max()) for counts in activations.counts.values()), default=0),
    }
