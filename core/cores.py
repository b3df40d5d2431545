"""How many threads make sense here."""

from __future__ import annotations

import os

# More threads add memory (some megabytes each) but hardly speed: the work is bound by memory and disk.
_MOST = 32


def available_cores() -> int:
    """Cores this process may use, at most 32."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST)
