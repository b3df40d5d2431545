"""Files of lines of JSON that are appended as things become known, and outlive a run that is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .system_files import sync


def read_lines(path: Path) -> list[Any]:
    """What the lines of a file say; of those that were cut off, or where there is no file, nothing."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):  # cut off, or empty
            continue
    return found


def append_line(path: Path, said: Any) -> None:
    """Append a line and have it on the disk; floats keep all their bits. Raises OSError."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(said)}\n")  # the line before may have been cut off
        file.flush()
        sync(file.fileno())
