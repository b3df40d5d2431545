"""Readings on the disk, so that a proof that is killed does not read the checkpoint in fp32 once more.

What enters the output matrix is kept, some megabytes, not the logits, which are made of it in seconds. No
pickles: a file that somebody else put there is data, never code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.system_files import rename, synced
from ..core.windows import Window
from .magnitudes import Magnitudes
from .model import Reference
from .reading import Reading

_PEAKS = "peaks"


def kept_or_read(
    folder: Path,
    windows: Sequence[Window],
    versions: Mapping[str, str],
    reference: Callable[[], Reference],
    read: Callable[[], Reading],
) -> Reading:
    """What lies in ``folder`` of an earlier reading of ``windows`` with the same ``versions``, or ``read()``.

    The folder is for one checkpoint, and gone when that is another. What is read is kept there, if possible.
    """
    asked = json.dumps([[window.ids, window.source] for window in windows]) + json.dumps(dict(versions))
    path = folder / f"reading-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.npz"
    found = _kept(path, windows)
    if found is not None:
        return Reading(found[0], [], reference().output, found[1])
    reading = read()
    with contextlib.suppress(OSError):
        _keep(path, reading)
    return reading


def _kept(path: Path, windows: Sequence[Window]) -> tuple[list[Any], Magnitudes] | None:
    """None where there is nothing, or something damaged: zip files have checksums."""
    try:
        with np.load(path, allow_pickle=False) as file:
            hidden = [file[str(number)] for number in range(len(windows))]
            peaks = json.loads(file[_PEAKS].tobytes())
        if any(
            values.dtype != np.float32 or values.ndim != 2 or len(values) != len(window.ids)
            for values, window in zip(hidden, windows, strict=True)
        ):
            return None
        return hidden, Magnitudes.from_json(len(windows), peaks)
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
        return None


def _keep(path: Path, reading: Reading) -> None:
    temporary = path.with_suffix(".new")
    arrays: dict[str, Any] = {str(number): values for number, values in enumerate(reading.hidden)}
    arrays[_PEAKS] = np.frombuffer(json.dumps(reading.magnitudes.to_json()).encode(), np.uint8)
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
    synced(temporary)
    rename(temporary, path)
