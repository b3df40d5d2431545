"""Whether llama.cpp's own buffers for weights work on this machine."""

from __future__ import annotations

WITHOUT_EXTRA_BUFFERS = (
    "llama.cpp's own buffers for weights do not work on this machine, so the model is loaded without them, "
    "which is slower; `kconv doctor` says what mends it"
)
"""What a command says once where ``extra_buffers`` is False."""


def extra_buffers() -> bool:
    """Whether models may be loaded with llama.cpp's extra buffers (weights repacked for this processor)."""
    return True
