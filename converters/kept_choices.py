"""Choices of formats a run has made, kept with its journal: measuring takes longer than converting."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import KconvError
from ..core.system_files import synced

if TYPE_CHECKING:
    from ..quant.policy_file import Choice

CHOICES = "choice-*.toml"
"""The names of the files."""


def keep_choices(folder: Path, choices: Iterable[Choice]) -> None:
    """Write them into a journal's folder. Raises OSError."""
    for number, choice in enumerate(choices):
        path = folder / CHOICES.replace("*", str(number))
        path.write_text(choice.to_toml(), encoding="utf-8")
        synced(path)


def kept_choices(folder: Path) -> dict[str, Choice]:
    """What lies in a journal's folder, by targets; none where they are damaged."""
    from ..quant.policy_file import read_choice

    try:
        found = [read_choice(path) for path in sorted(folder.glob(CHOICES))]
    except (KconvError, OSError):
        return {}
    return {choice.label: choice for choice in found}
