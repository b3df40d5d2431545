"""Options for files whose formats are chosen by what they cost, not by a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from .conversion_options import split_list
from .options import PATH, decorated

if TYPE_CHECKING:
    from ..quant.wish import Wanted


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--target-size``, ``--target-kl``, ``--menu``, ``--policy``; see ``wanted``."""
    return decorated(command, _OPTIONS)


def types_or(types: tuple[str, ...], default: tuple[str, ...], options: Mapping[str, Any]) -> tuple[str, ...]:
    """The ``types`` given, else ``default`` unless targets or a policy in ``options`` say what to make."""
    aimed = options["target_size"] or options["target_kl"] or options["policy"]
    return types or (() if aimed else default)


def take_wanted(options: dict[str, Any]) -> Wanted:
    """What these options ask for; they are taken out of the values click has read."""
    from ..quant.wish import wanted

    return wanted(*(options.pop(name) for name in ("target_size", "target_kl", "menu", "policy")))


_OPTIONS = (
    click.option(
        "--target-size",
        multiple=True,
        metavar="SIZE",
        callback=split_list,
        help="Choose the format of every matrix so that the file loses least within SIZE: 4.5G, 4.2GiB, "
        "900M, or 4.25bpw (bits per weight). What each matrix costs is measured first, on the text of "
        "--calibrate, or taken from --policy. Repeatable.",
    ),
    click.option(
        "--target-kl",
        multiple=True,
        type=float,
        metavar="NATS",
        help="Choose the formats for the smallest file with at most this mean KL divergence on that text: "
        "0.02. Repeatable.",
    ),
    click.option(
        "--menu",
        multiple=True,
        metavar="TYPES",
        callback=split_list,
        help="Formats to choose among.  [default: q2_K,q3_K,iq4_xs,q4_K,q5_K,q6_K,q8_0]",
    ),
    click.option(
        "--policy",
        type=PATH,
        metavar="FILE",
        help="Formats as a policy file has them that --target-size wrote, for a fine-tune of the same "
        "model; with a target: choose by that file's measured losses, without measuring anew.",
    ),
)
