"""What the embeddings part of a proof found: for encoders it stands in the place of the logits part."""

from __future__ import annotations

from dataclasses import dataclass

from ..runtimes.half_precision import HalfPrecision
from .findings import Finding, Verdict
from .loss import Grade


@dataclass(frozen=True)
class Similarity:
    """How alike file and checkpoint are, over ``texts`` texts of ``positions`` tokens in all.

    The cosines are those of the embeddings of a text (mean and least); ``pooling`` says how they are made,
    ``none`` where only hidden states are, whose cosines are averaged over a text. ``states_...`` are those of
    the hidden states at single positions. ``same_nearest`` is the share of texts whose most similar other
    text is the same in both. ``nmse`` is the squared difference of the hidden states over their variance, and
    ``nmse_same_gelu`` the same where fp32 arithmetic takes llama.cpp's table for GELU, too (None: not
    measured). ``not_finite`` texts have NaN or infinite numbers and are left out of all figures.
    """

    texts: int
    positions: int
    pooling: str
    cosine_mean: float
    cosine_least: float
    states_mean: float
    states_least: float
    same_nearest: float
    nmse: float
    nmse_same_gelu: float | None = None
    not_finite: int = 0


@dataclass(frozen=True)
class WorstText:
    """A text whose embeddings differ most: its number, its tokens, the cosine and how it begins."""

    window: int
    tokens: int
    cosine: float
    text: str


@dataclass(frozen=True)
class CosineGate:
    """The least mean cosine for a type: below it a file warns, and fails where it ``fails``.

    ``nmse`` is the largest error of the hidden states of types that lose nothing. ``source`` says where the
    numbers come from.
    """

    type: str
    least: float
    fails: bool
    nmse: float | None
    source: str


@dataclass(frozen=True)
class EmbeddingsPart:
    """The file's embeddings on the CPU against fp32; ``padded`` the least cosine in batches with padding."""

    verdict: Verdict
    figures: Similarity | None = None
    gate: CosineGate | None = None
    findings: tuple[Finding, ...] = ()
    worst: tuple[WorstText, ...] = ()
    padded: float | None = None
    half_precision: HalfPrecision | None = None

    @property
    def grade(self) -> Grade | None:
        """How much it loses, in a word; None where nothing was measured."""
        if self.figures is None or not self.figures.texts:
            return None
        lost = 1 - self.figures.cosine_mean
        return next((grade for most, grade in _GRADES if lost < most), "much")


_GRADES: tuple[tuple[float, Grade], ...] = ((1e-4, "nothing"), (2e-3, "little"), (0.03, "some"))
