"""Files whose codes were chosen by error feedback: derived again, or held to what choosing can do.

The manifest names the statistics and how far each matrix's are shrunk. If that very file lies beside the
artifact, every byte is derived again. If not, codes can be judged only by bounds: choosing moves a code by at
most one step (feedback.h), in honest files every tenth, so that errors over a tensor stay within LARGER times
those of plain encoding (at most 1.19 was measured, in all formats). Codes drawn at random from those within a
step have 3 times its error, from the two neighbours twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import KconvError
from ..core.foreign_values import object_of
from ..core.gguf_file import GgufHeader
from ..core.input_files import is_plain_name
from ..quant import native
from ..quant.code_layouts import layout_of, nearest_codes
from ..quant.formats import Format
from ..quant.ggml import Bytes, Floats
from ..quant.importance import OPTIMIZED, Importance, read_importance
from ..quant.optimize import METHOD, PLAIN, Key, Optimization, Trial
from ..quant.strengths import STRENGTHS
from .weight_errors import Compared, join_rows, rows_where

LARGER = 1.6
"""Times the error of plain encoding a tensor may have."""
PLAIN_CODES = 64
"""One code of so many may be further away where importance data alone chose it."""


def says_chosen(metadata: Mapping[str, Any]) -> bool:
    """Whether a file of those keys says that its codes were chosen."""
    return f"{OPTIMIZED}.method" in metadata


@dataclass(frozen=True)
class Chosen:
    """What is known of a file whose codes were chosen: the matrices they certainly were in, by tensor."""

    tensors: frozenset[str] = frozenset()

    def bounded(
        self, compared: Compared, name: str, format: Format, weights: Floats, stored: Bytes, first: int
    ) -> Compared:
        """The same with rows beyond what choosing can do among those that are ``far``."""
        if compared.same or layout_of(format) is None:
            return compared
        away = steps_away(format, weights, stored)
        allowed = 0 if name in self.tensors else weights.shape[1] // PLAIN_CODES
        beyond = rows_where((away > 1).sum(axis=1) > allowed, first)
        return replace(compared, far=join_rows([compared.far, beyond]))


def steps_away(format: Format, weights: Floats, stored: Bytes) -> npt.NDArray[np.int64]:
    """How many steps each code ``(rows, columns)`` is from the one nearest to its weight."""
    layout = layout_of(format)
    assert layout is not None
    blocks = stored.reshape(-1, format.block_bytes)
    steps, minima = layout.scales(blocks)
    parts = weights.reshape(*steps.shape, layout.grid.group)
    scaled = steps != 0
    with np.errstate(all="ignore"):
        x = (parts + minima[:, :, None]) / np.where(scaled, steps, np.float32(1))[:, :, None]
    codes = layout.codes(blocks).reshape(parts.shape).astype(np.int64)
    away = np.abs(codes - nearest_codes(layout.grid, x.astype(np.float32, copy=False)))
    return np.asarray(np.where(scaled[:, :, None], away, 0).reshape(weights.shape))


def recorded_strengths(manifest: Mapping[str, Any] | None) -> dict[Key, Trial] | None:
    """The strengths a manifest names; None where it names none, or anything but what kconv writes."""
    part = object_of(object_of((manifest or {}).get("importance")).get("optimized"))
    if part.get("method") != METHOD:
        return None
    trials: dict[Key, Trial] = {}
    for name, formats in object_of(part.get("matrices")).items():
        for format, found in object_of(formats).items():
            strengths = object_of(found).get("strength")
            for matrix, strength in enumerate(strengths if isinstance(strengths, list) else [None]):
                if strength not in (*STRENGTHS, PLAIN):
                    return None
                trials[name, matrix, format] = Trial(float(strength), 1.0)
    return trials


def derivable(artifact: Path, manifest: Mapping[str, Any] | None) -> Importance | None:
    """What codes of a file can be derived with; None where the statistics are not beside it as they were."""
    trials = recorded_strengths(manifest)
    importance = object_of((manifest or {}).get("importance"))
    name, sha256 = importance.get("file"), importance.get("sha256")
    if trials is None or not native.available_sets() or not isinstance(name, str) or not is_plain_name(name):
        return None
    path = artifact.parent / name
    if not path.is_file():
        return None
    try:
        found = read_importance(path)
    except KconvError:
        return None
    if found.full is None or found.sha256 != sha256:
        return None
    chosen = [key for key, trial in trials.items() if trial.strength != PLAIN]
    if any((name, matrix) not in found.full.members for name, matrix, _ in chosen):
        return None
    return replace(found, optimization=Optimization(found.full, trials))


def chosen_of(header: GgufHeader, manifest: Mapping[str, Any] | None) -> Chosen | None:
    """What to hold a file to that cannot be derived again; None where its codes were not chosen."""
    if not says_chosen(header.metadata):
        return None
    trials = recorded_strengths(manifest) or {}
    names = {name for name, _, _ in trials}
    plain = {name for (name, _, _), trial in trials.items() if trial.strength == PLAIN}
    return Chosen(frozenset(names - plain))
