"""Whether llama.cpp's own buffers for weights work on this machine."""

from __future__ import annotations


def extra_buffers() -> bool:
    """Whether models may be loaded with llama.cpp's extra buffers (weights repacked for this processor)."""
    return True
