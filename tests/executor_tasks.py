"""What the processes of tests/test_executor.py run; a module of its own, since they import it."""

from __future__ import annotations

import os
import time
from pathlib import Path

from kconv.core.errors import InputError
from kconv.flows.executor_child import report_progress


def pid_of(number: int) -> tuple[int, int]:
    return number, os.getpid()


def fail(name: str) -> None:
    raise InputError(f"{name} is refused", hint="take another")


def die(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def nap(path: str, seconds: float = 60) -> None:
    try:
        Path(path).touch()
        time.sleep(seconds)
    finally:
        Path(path).unlink()


def progressing() -> None:
    for stage in ("first", "first", "second"):
        report_progress(stage, 1 if stage == "first" else 2, 3)
