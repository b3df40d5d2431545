"""How long work reports its progress, and what else it does meanwhile that users may want to know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .leftovers import Leftover

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``, in bytes or items, from one thread at a time."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""


def ignore(folder: Path, removed: list[Leftover]) -> None:
    """Report nothing."""


def unheard(text: str) -> None:
    """Report nothing."""


on_remark: Callable[[str], None] = unheard
"""Told, in a sentence, of what is done otherwise than usual; the command line sets it."""

on_removal: Callable[[Path, list[Leftover]], None] = ignore
"""Told of what ``leftovers.sweep`` has removed; the command line sets it."""

on_keeping: Callable[[Path, list[Leftover]], None] = ignore
"""Told of unfinished files that stay for ``--resume``; the command line sets it."""
