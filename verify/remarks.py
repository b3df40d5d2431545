"""What a reader of the figures should know before trusting them: remarks on a proof, which judge nothing."""

from __future__ import annotations

from ..core.language import phrase, phrases
from .proof import LogitsPart

FEW = 100
"""Positions below which a mean is mostly chance."""


def remarks(part: LogitsPart, vocabulary: int) -> tuple[str, ...]:
    """Notes on how much the logits part proves; ``vocabulary`` is how many tokens the model has."""
    figures = part.figures
    if figures is None or not figures.positions:
        return ()
    notes = []
    if figures.positions < FEW:
        where = phrases("{count} position was", "{count} positions were", figures.positions)
        notes.append(
            phrase("only {where} compared, too few for a result; give a longer text or more tokens").of(
                where=where
            )
        )
    if figures.perplexity_reference > vocabulary:
        notes.append(
            phrase(
                "the checkpoint itself predicts this text worse than chance (perplexity {perplexity:,.0f} "
                "with {vocabulary:,} tokens): check that its weights are trained and that the text is in "
                "its language"
            ).of(perplexity=figures.perplexity_reference, vocabulary=vocabulary)
        )
    return tuple(notes)
