"""Options that say what a model card says, the same in ``card`` and ``upload``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..core.language import LANGUAGES
from .console import say
from .options import PATH, decorated

if TYPE_CHECKING:
    from ..flows.release import Release, Stated

_OPTIONS = (
    click.option(
        "--lang",
        type=click.Choice([*LANGUAGES, "both"]),
        default="both",
        show_default=True,
        help="Language of the card: English, Korean, or both, one after the other.",
    ),
    click.option(
        "--base-model",
        metavar="ORG/NAME",
        help="Repository of the original.  [default: as the manifests or files say]",
    ),
    click.option(
        "--license",
        "licence",
        metavar="NAME",
        help="Licence of the original, by the Hub's identifier.  [default: as the manifests or files say]",
    ),
    click.option(
        "--also",
        type=PATH,
        multiple=True,
        metavar="FILE",
        help="Another file that belongs there: the licence's text, a notice. Repeatable.",
    ),
)


def card_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options, in the order --help shows them."""
    return decorated(command, _OPTIONS)


def stated(options: dict[str, Any]) -> Stated:
    """What these options say of the model. Raises UsageError for a name that no repository can have."""
    from ..core.errors import UsageError
    from ..flows.release import Stated
    from ..hub.names import is_repository

    base = options["base_model"]
    if base is not None and not is_repository(base):
        raise UsageError(f"--base-model {base} is not the name of a repository", hint="write it as org/name")
    return Stated(base, options["licence"], options["also"])


def say_unknown_base(release: Release) -> None:
    """A note where the card cannot name the original, by which people find the files."""
    if release.base is None:
        say(
            "kconv: note: the original's repository is not known; name it with --base-model ORG/NAME",
            err=True,
        )


def languages(chosen: str) -> tuple[str, ...]:
    """The languages of the card."""
    return LANGUAGES if chosen == "both" else (chosen,)
