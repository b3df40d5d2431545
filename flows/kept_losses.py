"""What tensors and mixes of formats lose, as far as it has been found out, for a run that goes on.

In a folder within that of what a conversion has measured (kept_work.py): errors of each tensor, divergences
of each probe and each mix, and the passes that these take (reference/kept_probes.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..quant.choice_losses import Errors
from ..quant.formats import FORMATS, Format
from ..quant.importance import Importance
from ..quant.optimize import METHOD
from ..reference.kept_probes import FOUND, PASSES, KeptProbes
from .results import Run

if TYPE_CHECKING:
    from ..core.windows import Window

PROBES = "probes"
"""The folder's name."""

ERRORS = "errors.jsonl"
WORTH_KEEPING = (f"{PROBES}/{ERRORS}", f"{PROBES}/{FOUND}", f"{PROBES}/{PASSES}")
"""Where there is something to go on with."""


def probes_kept(run: Run) -> KeptProbes | None:
    """What an ended run has found out and this one will; None where nothing is kept."""
    return None if run.work is None else KeptProbes(run.work / PROBES, run.announce)


def kept_errors(kept: KeptProbes | None, importance: Importance | None) -> dict[str, Errors]:
    """The relative errors of tensors with this importance data, as far as they are known."""
    found: dict[str, Errors] = {}
    for said in [] if kept is None else kept.lines(ERRORS):
        try:
            if said["of"] == _identity(importance):
                of = {FORMATS[name]: float(error) for name, error in said["errors"].items()}
                found[str(said["tensor"])] = Errors(of, float(said["power"]))
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError):
            continue
    return found


def keep_errors(kept: KeptProbes | None, importance: Importance | None, tensor: str, errors: Errors) -> None:
    """Those of a tensor are known."""
    if kept is not None:
        named = {format.name: error for format, error in errors.of.items()}
        said = {"of": _identity(importance), "tensor": tensor, "errors": named, "power": errors.power}
        kept.append(ERRORS, said)


def key_of(
    formats: Mapping[str, Format], importance: Importance | None, windows: Sequence[Window], *, rounding: bool
) -> str:
    """What the divergence depends on where tensors have these formats: the key it is kept under."""
    named = sorted((name, format.name) for name, format in formats.items())
    read = [(window.ids, window.source, window.scored) for window in windows]
    return _digest([_identity(importance), named, repr(read), rounding])


def _identity(importance: Importance | None) -> str:
    """By what weights are encoded."""
    if importance is None:
        return _digest(None)
    codes = importance.optimization
    return _digest([importance.sha256, None if codes is None else [METHOD, codes.to_manifest()]])


def _digest(said: Any) -> str:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
