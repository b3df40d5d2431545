"""What probes have found, kept for a run that goes on: each divergence, and passes behind a layer.

A probe is found again by a key, which says all it depends on besides what the folder is of (the checkpoint,
the options, the programs). Divergences are kept position by position, so that what follows from them is the
same to the last bit.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..core.kept_lines import append_line, read_lines
from .divergences import Divergence
from .saved_pass import MARK, SparePass

FOUND = "divergences.jsonl"
PASSES = f"pass-*/{MARK}"
"""In the folder, where there is something to go on with."""


class KeptProbes:
    """Keeps in ``folder`` what is found; ``told`` is told of what is taken up, and of what cannot be kept."""

    def __init__(self, folder: Path, told: Callable[[str], None]) -> None:
        self._folder, self._told, self._full = folder, told, False
        self._found: dict[str, Divergence] = {}
        for said in read_lines(folder / FOUND):
            with contextlib.suppress(LookupError, TypeError, ValueError, OverflowError):
                positions = np.array(said["positions"], np.float64)
                self._found[str(said["of"])] = Divergence(
                    float(said["mean"]), float(said["error"]), positions
                )

    def divergence(self, key: str) -> Divergence | None:
        """What the probe of that key has found, in this run or one before."""
        return self._found.get(key)

    def keep(self, key: str, divergence: Divergence) -> None:
        """A probe is done."""
        self._found[key] = divergence
        positions = divergence.positions.tolist()
        said = {"of": key, "mean": divergence.mean, "error": divergence.error, "positions": positions}
        self.append(FOUND, said)

    def lines(self, name: str) -> list[Any]:
        """What another file of lines in the folder says."""
        return read_lines(self._folder / name)

    def append(self, name: str, said: Any) -> None:
        """Append a line to it; where there is no room nothing more is kept, and the run goes on."""
        if self._full:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            append_line(self._folder / name, said)
        except OSError as error:
            self._full = True
            reason = error.strerror or str(error)
            self._told(f"warning: from here on what probes find is not kept for --resume: {reason}")

    @contextlib.contextmanager
    def passing(self, key: str) -> Iterator[SparePass | None]:
        """Where the pass of that key is saved behind each layer; what is saved is gone once all is done."""
        folder = self._folder / f"pass-{key[:16]}"
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        saved = SparePass(folder, {"of": key}, self._told) if folder.is_dir() else None
        if saved is not None and saved.layers:
            layers = saved.layers
            self._told(f"resumed: the probes go on behind layer {layers}")
        yield saved
        shutil.rmtree(folder, ignore_errors=True)
