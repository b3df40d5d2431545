"""Asking again: a Hub that is busy or far away now and then gives no answer, or breaks off."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from ..core import progress as core_progress
from ..core.errors import KconvError
from .names import HubName
from .refusals import Temporary, gave_up, host, is_no_connection, is_of_the_token, refusal

MANY, FEW = 6, 2
"""Tries in a row without anything gained: usually, and where what is in the cache would do."""
WAIT = 0.5
"""Seconds before the second try; twice as many before each that follows."""
LONGEST = 300.0
"""Seconds that are waited because the server says so; it counts requests in windows of five minutes."""

_WORTH_A_WORD = 5.0  # seconds
Found = TypeVar("Found")


def patiently(
    ask: Callable[[], Found],
    name: HubName,
    what: str = "",
    *,
    tries: int | None = None,
    unreached: int | None = None,
) -> Found:
    """What ``ask`` gives, asked several times where its failures are of a kind that passes.

    ``what`` names in messages what is asked for; ``unreached`` are the tries where no connection comes about.
    Raises HubRefusal, EnvironmentProblem.
    """
    failed = 0
    while True:
        try:
            return ask()
        except Exception as error:
            failed += 1
            most = unreached if is_no_connection(error) else None
            again_or_raise(error, name, what, failed, tries=most or tries)


def again_or_raise(
    error: Exception,
    name: HubName,
    what: str,
    failed: int,
    *,
    tries: int | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Wait for the next try after ``failed`` of them, or raise what the failure means."""
    if isinstance(error, KconvError | InterruptedError):
        raise error
    meaning = error if isinstance(error, Temporary) else refusal(error, name, what)
    if not isinstance(meaning, Temporary):
        raise meaning from (None if is_of_the_token(error) else error)
    if failed >= (tries or MANY) or (meaning.wait or 0) > LONGEST:
        raise gave_up(meaning.reason, name, what, failed) from None
    wait = WAIT * 2 ** (failed - 1) * random.uniform(0.8, 1.2) if failed else 0.0
    if (meaning.wait or 0) > _WORTH_A_WORD:
        core_progress.on_remark(f"{host()} wants {meaning.wait:.0f} s of patience: {meaning.reason}")
    _sleep(max(wait, meaning.wait or 0), stopped)


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stopped():
            raise InterruptedError("stopped while waiting for the Hub")
        time.sleep(min(left, 0.1))
