"""Tests that send signals pass whatever this process was told to ignore (nohup, a script's background)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil


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


def killing(module: str, most: int) -> threading.Thread:
    """Kill the next ``most`` children that run ``module`` as they start, as a machine without memory does."""

    def kill() -> None:
        killed: set[int] = set()
        end = time.monotonic() + 20
        while len(killed) < most and time.monotonic() < end:
            for child in psutil.Process().children():
                with suppress(psutil.Error):
                    if child.pid not in killed and module in child.cmdline():
                        child.kill()
                        killed.add(child.pid)
            time.sleep(0.001)

    thread = threading.Thread(target=kill)
    thread.start()
    return thread
