"""What glibc does with memory that was freed; elsewhere nothing is done."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names, from malloc.h
_FREE, _LARGE = 256 << 20, 80 << 20  # bytes kept at the end of the heap, and of what is mapped on its own
_USUAL_FREE, _USUAL_LARGE = 64 << 20, 32 << 20  # where glibc arrives by itself
_keeping = False


@contextlib.contextmanager
def kept_when_freed() -> Iterator[None]:
    """Let memory that is freed be used again by what is allocated next, arrays of megabytes, too.

    By itself glibc maps a large array anew and unmaps it in the end, and the kernel clears all its pages
    again: in a pass over thousands of tokens a quarter of the processor's time. It takes some 300 MB more.
    """
    global _keeping
    mallopt = _function("mallopt")
    if mallopt is None or _keeping:
        yield
        return
    _keeping = True
    mallopt(_MMAP_THRESHOLD, _LARGE)
    mallopt(_TRIM_THRESHOLD, _FREE)
    try:
        yield
    finally:
        _keeping = False
        mallopt(_MMAP_THRESHOLD, _USUAL_LARGE)
        mallopt(_TRIM_THRESHOLD, _USUAL_FREE)
        give_freed_memory_back()


def give_pieces_back() -> None:
    """While freed memory is kept: give back what lies free in pieces. Done now and then, or they add up."""
    if _keeping:
        give_freed_memory_back()


def give_freed_memory_back() -> None:
    """Give it to the system, also what threads have freed that will not ask again: some 100 MB."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
