"""``kconv compare``: several types of one checkpoint, side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.language import _
from .choice_text import choice_text
from .console import (
    emit_json,
    end_unproven,
    plural,
    say,
    seconds_text,
    size_text,
    table,
)
from .conversion_options import asked, conversion_options, types_option
from .layout import columns
from .options import PATH, force_option, json_option, read_size, threads_option, verbose_option
from .recommended import command_of, recommended_json, say_recommended
from .report_option import naming_the_report, refuse_report
from .sources import SOURCE, revision_option
from .target_options import target_options

if TYPE_CHECKING:
    from ..flows.compare import ComparedType, Comparison

EXAMPLES = """\b
Examples:
  kconv compare ./42dot_LLM-SFT-1.3B -q q3_k_m,q4_0,q4_k_m,q5_k_m,q8_0 --report types.html
  kconv compare ./42dot_LLM-SFT-1.3B -q q4_k_m -q q4_k_m:pure -q q4_k_m:output=q8_0 --text news.txt
  kconv compare ./42dot_LLM-SFT-1.3B -q iq3_s,iq4_xs,q4_k_s --calibrate korean.txt --text held-out.txt
  kconv compare ./42dot_LLM-SFT-1.3B -q q4_0,q4_k_m,q8_0 --keep -o dist/
"""


@click.command("compare", short_help="Measure several types of a checkpoint side by side.", epilog=EXAMPLES)
@click.argument("checkpoint", type=SOURCE)
@revision_option
@types_option("none; give at least two")
@conversion_options
@target_options
@click.option(
    "--text",
    "texts",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="UTF-8 text to measure on; use other text than for the importance data. Repeatable.  [default: a "
    "few thousand tokens of built-in Korean and English]",
)
@click.option("--tokens", type=click.IntRange(min=2), metavar="N", help="Use at most N tokens of each text.")
@click.option(
    "--max-kl",
    type=click.FloatRange(min=0, min_open=True),
    metavar="X",
    help="Recommend the smallest type whose mean KL divergence is below X nats.  [default: 0.1]",
)
@click.option(
    "--max-size",
    metavar="SIZE",
    callback=read_size,
    help="Recommend the type that loses least of those whose file is at most this large: 2G, 1.5G (powers of "
    "ten).",
)
@click.option("--keep", is_flag=True, help="Keep the files and their manifests.")
@click.option(
    "-o",
    "--output",
    type=PATH,
    metavar="FOLDER",
    help="Folder for the files, temporary or kept.  [default: this folder]",
)
@click.option("--report", type=PATH, metavar="FILE.html", help="Write the table and a plot to an HTML file.")
@threads_option
@force_option
@json_option
@verbose_option
def command(
    checkpoint: str | Path,
    types: tuple[str, ...],
    texts: tuple[Path, ...],
    tokens: int | None,
    max_kl: float | None,
    max_size: int | None,
    keep: bool,
    output: Path | None,
    report: Path | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Make several types of CHECKPOINT and measure what each of them loses.

    All files are written in one read of the checkpoint. Their predictions on the same text are compared
    with those of the checkpoint in fp32: mean divergence, how often both predict the same token, perplexity.
    At the end one of the types is recommended, with the command that makes it.
    The files are removed afterwards unless --keep is given. A type that exceeds its gate is a result like any
    other; the exit code is 1 if a file gave no logits, 4 if that was not the file's fault.
    """
    if report is not None:
        refuse_report(report, force=force)

    from .progress import announce, shown_progress
    from .telling import Teller

    with shown_progress() as progress, Teller(progress, quiet=as_json, files=keep) as observer:
        from ..core.text_files import read_texts
        from ..flows.compare import compare
        from ..flows.recommendation import of_comparison

        read = read_texts(texts) if texts else None
        wanted = asked(types, options)
        comparison = compare(
            checkpoint,
            output,
            options=wanted,
            texts=read,
            tokens=tokens,
            keep=keep,
            force=force,
            threads=threads,
            progress=progress,
            announce=announce,
            observer=observer,
        )
    chosen = of_comparison(comparison, most_loss=max_kl, most_bytes=max_size)
    command = None if chosen.type is None else command_of(checkpoint, wanted, chosen.type)
    if not as_json:
        _print_summary(comparison)
        say_recommended(chosen, command)
    if report is not None:
        with naming_the_report(), shown_progress():
            from ..report.comparison import write_comparison

            write_comparison(comparison, report, force=force)
    if as_json:
        more = {"recommended": recommended_json(chosen, command)}
        emit_json({**comparison.to_json(), **more, "report": None if report is None else str(report)})
    elif report is not None:
        say(_("report: {path}", path=report))
    without = [each for each in comparison.types if each.figures is None]
    from ..report.words import cause

    end_unproven((each.proof.verdict, f"{each.type}: {cause(each.proof)}") for each in without)


def _print_summary(comparison: Comparison) -> None:
    header = ("type", "bytes", "size", "bits per weight", "mean KL", "same top", "perplexity", "gate", "")
    rows = [_row(each) for each in comparison.types]
    left_out = {1} if columns(sys.stdout) is not None else set()  # there is room for one of the two sizes
    left_out |= set() if any(row[-1] for row in rows) else {len(header) - 1}
    shown = [[cell for at, cell in enumerate(row) if at not in left_out] for row in (header, *rows)]
    say(f"\n{table(shown[1:], header=shown[0], right=range(1, shown[0].index('gate')))}\n", wrap=False)
    say(
        "mean KL is the divergence from the checkpoint in nats, ± one standard error; perplexity is that of "
        "the file divided by that of the checkpoint; 'changed' marks recipes unlike llama-quantize's, "
        "'chosen' files whose formats were chosen by measured losses"
    )
    for each in comparison.types:
        if each.choice is not None:
            say(f"\n{each.type}:\n{choice_text(each.choice)}")
    for each in comparison.types:
        if each.path is not None:
            say(f"kept: {each.path}")
    tokens = sum(comparison.read["windows"])
    say(f"{plural(len(comparison.types), 'type')} on {tokens:,} tokens in {seconds_text(comparison.seconds)}")


def _row(each: ComparedType) -> tuple[str, ...]:
    from ..report.names import verdict_word
    from ..report.text import with_error

    size = (each.type, f"{each.bytes:,}", size_text(each.bytes), f"{each.bits_per_weight:.2f}")
    kind = "" if each.stock else _("changed") if each.choice is None else _("chosen")
    figures = each.figures
    if figures is None:
        return (*size, "–", "–", "–", verdict_word(each.proof.verdict), kind)
    return (
        *size,
        with_error(figures.kl_mean, figures.kl_mean_error).replace("\N{NO-BREAK SPACE}", " "),
        f"{100 * figures.same_top1:.1f} %",
        f"{each.perplexity_ratio[0]:.4f}",
        verdict_word(each.proof.verdict),
        kind,
    )
