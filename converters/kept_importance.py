"""Importance data a run has measured, kept with its journal: measuring may take longer than converting."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..core.system_files import synced
from ..quant.importance import Importance

_NAME = "importance.npz"
_ABOUT = "about"


def keep_importance(folder: Path, importance: Importance) -> None:
    """Write them into a journal's folder. Raises OSError."""
    about = {
        "names": list(importance.values),
        "datasets": importance.datasets,
        "chunks": importance.chunks,
        "chunk_size": importance.chunk_size,
        "sha256": importance.sha256,
    }
    arrays: dict[str, Any] = {
        _ABOUT: np.frombuffer(json.dumps(about).encode(), np.uint8),
        **{str(number): values for number, values in enumerate(importance.values.values())},
    }
    with open(folder / _NAME, "wb") as file:
        np.savez(file, **arrays)
    synced(folder / _NAME)


def kept_importance(folder: Path) -> Importance | None:
    """What lies in a journal's folder; None where there are none, or they are damaged."""
    try:
        with np.load(folder / _NAME, allow_pickle=False) as file:
            about = json.loads(file[_ABOUT].tobytes())
            values = {str(name): file[str(number)] for number, name in enumerate(about["names"])}
        if any(each.dtype != np.float32 or each.ndim != 1 for each in values.values()):
            return None
        datasets = tuple(map(str, about["datasets"]))
        chunks, size = int(about["chunks"]), int(about["chunk_size"])
        return Importance(values, "", datasets, chunks, size, str(about["sha256"]))
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile):
        return None
