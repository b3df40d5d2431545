"""How many threads make sense here."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .system_processes import processors

_SPINS, _FEW = "GOMP_SPINCOUNT", "1000"  # what libgomp takes where threads outnumber processors
# More threads add memory (some megabytes each) but hardly speed: the work is bound by memory and disk.
_MOST = 32


def available_cores() -> int:
    """Cores this process may use, at most 32."""
    return min(processors(), _MOST)


@contextlib.contextmanager
def few_spins() -> Iterator[None]:
    """Load a library that computes with libgomp meanwhile, so that its threads sleep early when they wait.

    libgomp reads its settings once, when the first library that needs it is loaded, and lets threads spin for
    milliseconds unless it sees that they outnumber the processors. It cannot see the process of llama.cpp's
    beside ours, nor what else is at work: on a busy machine spinning took three times what computing took.
    What the user has set counts. No process started meanwhile inherits it.
    """
    if _SPINS in os.environ or "OMP_WAIT_POLICY" in os.environ:
        yield
        return
    os.putenv(_SPINS, _FEW)
    try:
        yield
    finally:
        os.unsetenv(_SPINS)
