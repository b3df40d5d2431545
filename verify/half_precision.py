"""The findings of a logits part about half precision."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ..core.language import phrase
from ..runtimes.half_precision import HalfPrecision
from .embeddings_part import EmbeddingsPart
from .proof import Finding, LogitsPart, verdict_of, worst

_MOST = 8  # findings
Part = TypeVar("Part", LogitsPart, EmbeddingsPart)


def with_half_precision(part: Part, halves: HalfPrecision | None, hidden: bool) -> Part:
    """``part`` with what half precision does to the file; ``hidden`` where its runtime may not show it."""
    if halves is None:
        return part
    found: list[Finding] = [
        Finding(each.matrix, each.told(hidden), grave=not each.fits) for each in halves.near[:_MOST]
    ]
    if more := halves.near[_MOST:]:
        grave = any(not each.fits for each in more)
        found.append(
            Finding(
                "half precision", phrase("{count} more places like these").of(count=len(more)), grave=grave
            )
        )
    verdict = worst([part.verdict, *([verdict_of(tuple(found))] if found else [])])
    return replace(part, verdict=verdict, findings=(*found, *part.findings), half_precision=halves)
