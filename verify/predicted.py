"""What a choice of formats was predicted to lose, beside what the proof measures: words, never a verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..core.language import phrase
from .proof import Proof

_NEAR = 0.25


def with_prediction(proof: Proof, predicted: float | None) -> Proof:
    """The proof with a note on how near the measured mean divergence is to ``predicted`` nats."""
    figures = proof.logits.figures
    if predicted is None or figures is None or not figures.positions or predicted <= 0:
        return proof
    off = figures.kl_mean / predicted - 1
    values = {
        "predicted": f"{predicted:.3g}",
        "measured": f"{figures.kl_mean:.3g}",
        "percent": f"{abs(off):.0%}",
    }
    if abs(off) <= _NEAR:
        note = phrase(
            "the formats were chosen to lose {predicted} nats, and {measured} were measured: within 25 %"
        )
    elif off < 0:
        note = phrase(
            "the formats were chosen to lose {predicted} nats on the calibration text, and {measured} were "
            "measured on the proof's, {percent} less: texts of another kind, or a fine-tune"
        )
    else:
        note = phrase(
            "the formats were chosen to lose {predicted} nats on the calibration text, and {measured} were "
            "measured on the proof's, {percent} more: calibrate on text of the kind the model will read"
        )
    return replace(proof, notes=(*proof.notes, note.of(**values)))


def recorded_prediction(manifest: Mapping[str, Any] | None) -> float | None:
    """The prediction a manifest records, if it does; it may come from anybody."""
    choice = (manifest or {}).get("choice")
    value = choice.get("predicted_kl") if isinstance(choice, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
