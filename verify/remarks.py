"""What a reader of the figures should know before trusting them: remarks on a proof, which judge nothing."""

from __future__ import annotations

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
        where = "1 position was" if figures.positions == 1 else f"{figures.positions} positions were"
        notes.append(f"only {where} compared, too few for a result; give a longer text or more tokens")
    if figures.perplexity_reference > vocabulary:
        notes.append(
            "the checkpoint itself predicts this text worse than chance (perplexity "
            f"{figures.perplexity_reference:,.0f} with {vocabulary:,} tokens): check that its weights "
            "are trained and that the text is in its language"
        )
    return tuple(notes)
