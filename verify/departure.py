"""Where llama.cpp is known to compute otherwise than a checkpoint says: no file can be blamed for it."""

from __future__ import annotations

from dataclasses import replace

from ..converters.family import Departure
from ..core.language import phrase
from .measurements import Figures
from .proof import Finding


def without_departure(figures: Figures, departure: Departure | None) -> Figures:
    """The figures to judge a file by: its NMSE against the checkpoint as llama.cpp computes it.

    Those that are shown stay against the checkpoint itself.
    """
    if departure is None or figures.nmse_same_gelu is None:
        return figures
    return replace(figures, nmse=figures.nmse_same_gelu)


def departure_finding(figures: Figures, departure: Departure) -> Finding:
    """What it costs, where that was measured; never grave."""
    message = phrase(
        "llama.cpp {what}, so that its logits differ a little from the checkpoint's whatever the file holds"
    )
    message = message.of(what=departure.what)
    if figures.nmse_same_gelu is not None:
        message = phrase(
            "llama.cpp {what}: NMSE of the logits {nmse:.2g}, and {left:.2g} once the checkpoint is computed "
            "so, too"
        ).of(what=departure.what, nmse=figures.nmse, left=figures.nmse_same_gelu)
    return Finding("llama.cpp", message, grave=False)
