"""How many threads make sense here."""

from __future__ import annotations

from .system_processes import processors

# More threads add memory (some megabytes each) but hardly speed: the work is bound by memory and disk.
_MOST = 32


def available_cores() -> int:
    """Cores this process may use, at most 32."""
    return min(processors(), _MOST)
