"""How long work tells that it goes on."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called as ``progress(stage, done, total)``, in bytes or items, from one thread at a time."""


def silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
