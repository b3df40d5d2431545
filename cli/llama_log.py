"""llama.cpp's log."""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

_LOG_ERROR = 4  # ggml.h, enum ggml_log_level
_log_callback: Any = None  # llama.cpp keeps a pointer to it for the rest of the process


def capture_log(api: Any, verbose: bool) -> deque[str]:
    """Take llama.cpp's log: shown if ``verbose``, else only the last errors are kept, for messages."""
    global _log_callback
    complaints: deque[str] = deque(maxlen=3)

    def on_log(level: int, text: bytes, data: Any) -> None:
        line = text.decode("utf-8", "replace")
        if verbose:
            sys.stderr.write(line)
        elif level == _LOG_ERROR and line.strip():
            complaints.append(line.strip())

    _log_callback = api.llama_log_callback(on_log)
    api.llama_log_set(_log_callback, None)
    return complaints
