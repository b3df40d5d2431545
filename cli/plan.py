"""``kconv plan``: what a conversion would write, before it is done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.language import _, ngettext
from .choice_text import choice_text
from .console import emit_json, say, say_notes, size_text, table
from .conversion_options import asked, conversion_options, types_option
from .options import PATH, json_option, split_option, threads_option, verbose_option
from .recommended import command_of, recommended_json, say_recommended
from .sources import SOURCE, revision_option
from .target_options import target_options, types_or

if TYPE_CHECKING:
    from ..flows.plan import Plan, PlannedType
    from ..quant.published import Band

EXAMPLES = """\b
Examples:
  kconv plan ./42dot_LLM-SFT-1.3B
  kconv plan ./42dot_LLM-SFT-1.3B -q q4_k_m,q5_k_m,q8_0 -o /mnt/models
  kconv plan ./42dot_LLM-SFT-1.3B -q q4_k_m --output-type q8_0
  kconv plan 42dot/42dot_LLM-SFT-1.3B --json
  kconv plan kakaobrain/kogpt --revision KoGPT6B-ryan1.5b-float16
"""


@click.command("plan", short_help="Show the size of each type before converting.", epilog=EXAMPLES)
@click.argument("checkpoint", type=SOURCE)
@revision_option
@click.option(
    "-o", "--output", type=PATH, metavar="PATH", help="Where the files would go.  [default: this folder]"
)
@types_option("all types")
@conversion_options
@target_options
@split_option
@threads_option
@json_option
@verbose_option
def command(
    checkpoint: str | Path,
    output: Path | None,
    types: tuple[str, ...],
    threads: int | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> None:
    """Show what kconv to-gguf would write for CHECKPOINT with the same options; nothing is written.

    For each type, smallest first: the exact file size, bits per weight, tensors that get another format
    because their rows are not whole blocks, whether llama.cpp requires importance data, and the published
    divergence. Then the memory and disk space a conversion needs, and the type recommended for this machine:
    the one that loses least of those whose weights, cache and buffers fit into the memory that is free. Only
    the headers of the weight files are read; the vocabulary is compared with the tokenizer as in a
    conversion, since it is part of the file. Of a repository of the Hub (org/name) no more than those headers
    and small files is fetched.
    """
    from .progress import shown_progress
    from .telling import Teller

    with shown_progress() as progress, Teller(progress, quiet=as_json, tokens=False) as observer:
        from ..flows.plan import plan
        from ..flows.recommendation import for_this_machine, free_memory
        from ..quant.policy import POLICIES

        wanted = asked(types_or(types, tuple(POLICIES), options), options)
        planned = plan(
            checkpoint, output, options=wanted, threads=threads, progress=progress, observer=observer
        )
    stock = not (wanted.pure or wanted.tensor_types or wanted.output_type or wanted.embedding_type)
    bands = _bands(planned, stock=stock)
    planned = replace(planned, types=tuple(sorted(planned.types, key=lambda each: each.bytes)))
    chosen = for_this_machine(planned, bands, free_memory())
    command = None if chosen.type is None else command_of(checkpoint, wanted, chosen.type)
    if as_json:
        content = planned.to_json()
        for each in content["types"]:
            band = bands.get(each["type"])
            each["expected_kl"] = None if band is None else band.to_json()
            each["recommended"] = each["type"] == chosen.type
        emit_json({**content, "recommended": recommended_json(chosen, command)})
    else:
        _print_summary(planned, bands, chosen.type)
        say_recommended(chosen, command)


def _bands(planned: Plan, *, stock: bool) -> dict[str, Band]:
    """Published figures, by type; there are some of llama-quantize's own recipes only."""
    from ..converters.families import embeds_texts
    from ..quant.published import expected_divergence

    most = planned.parameters / 10  # what may be in other formats than in the models that were measured
    bands = {
        each.type: expected_divergence(each.type)
        for each in planned.types
        if stock and each.fallback_weights < most and not embeds_texts(planned.arch)
    }
    return {name: band for name, band in bands.items() if band is not None}


def _print_summary(planned: Plan, bands: Mapping[str, Band], recommended: str | None) -> None:
    # the table has the fallbacks, the wide matrices of T5 are as in every conversion
    of_types = (note for each in planned.types for note in each.notes)
    warnings = (note for note in of_types if note.warning and note.name != "format-fallback")
    told = set(planned.notes)
    say_notes(dict.fromkeys(note for note in warnings if note not in told))
    rows = [
        (
            each.type,
            f"{each.bytes:,}",
            size_text(each.bytes),
            f"{each.bits_per_weight:.2f}",
            _divergence(each, bands.get(each.type)),
            _remarks(each, planned, recommended=each.type == recommended),
        )
        for each in planned.types
    ]
    header = ("type", "bytes", "size", "bits per weight", "expected KL", "")
    say(f"\n{table(rows, header=header, right=(1, 2, 3))}")
    for each in planned.types:
        if each.choice is not None:
            say(f"\n{each.type}:\n{choice_text(each.choice)}\n")
    for refused in planned.refused:
        say(f"{refused.type}: not possible, {refused.reason}")
    for companion in planned.companions:
        say(
            f"each needs {companion.path.name} in the same folder, {size_text(companion.bytes)} "
            f"({companion.bytes:,} bytes)"
        )
    if bands:
        say(
            "expected KL: mean divergence in nats, as published in llama.cpp's tools/perplexity/README.md "
            "for models of 7 and 8 billion weights on English text; kconv to-gguf measures it for the file "
            "it writes"
        )
    if any(each.needs_imatrix for each in planned.types):
        say("types that need importance data are a few dozen bytes larger with --imatrix or --calibrate")
    total = planned.companion_bytes + sum(each.bytes for each in planned.types)
    say(f"\ndisk: {size_text(total)} for all of these, {size_text(planned.free)} free in {planned.folder}")
    say(f"memory: about {size_text(planned.memory)}, for the proof {size_text(planned.proof_memory)}")


def _divergence(each: PlannedType, band: Band | None) -> str:
    if each.lossless:
        return _("none: exact")
    if each.choice is not None:
        return _("{loss} predicted", loss=f"{each.choice.predicted:.3g}")
    if band is None:
        return "–"
    low, high = f"{band.low:.3g}", f"{band.high:.3g}"
    return low if band.low == band.high else _("{low} to {high}", low=low, high=high)


def _remarks(each: PlannedType, planned: Plan, *, recommended: bool) -> str:
    """What is particular about a type, in a few words."""
    remarks = [_("recommended")] if recommended else []
    remarks += [_("needs importance data")] if each.needs_imatrix else []
    fallen = Counter((wanted, given) for _, wanted, given in each.fallbacks)
    remarks += [
        _(
            "{tensors} {format} instead of {wanted}",
            tensors=ngettext("{count} tensor", "{count} tensors", count),
            format=given.upper(),
            wanted=wanted.upper(),
        )
        for (wanted, given), count in fallen.items()
    ]
    if each.bytes + planned.companion_bytes > planned.free:
        remarks.append(_("does not fit on the disk"))
    return ", ".join(remarks)
