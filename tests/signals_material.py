"""Tests that send signals pass whatever this process was told to ignore (nohup, a script's background)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def _nothing(number: int, frame: Any) -> None:
    """Ignore a signal as SIG_IGN does, but not for the programs started from here."""


def pytest_configure() -> None:
    """Let what tests start be interruptible.

    A signal that is ignored stays so in programs started from here; one that has a handler does not. Ctrl-C
    alone, since who uses nohup wants no hang-up to reach anything.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _nothing)


@contextmanager
def hangups_heeded() -> Iterator[None]:
    """What is started within heeds SIGHUP even under nohup."""
    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _nothing)
    yield
    signal.signal(signal.SIGHUP, before)
