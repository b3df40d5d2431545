"""The embeddings part: an encoder's hidden states and embeddings against the checkpoint's in fp32.

Of each text both sides give hidden states, from which the checkpoint's side is pooled as its folder says; the
file's embedding is its runtime's own. Cosines are what such vectors are compared by, so they are the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..converters.pooling import Pooling
from ..core.errors import ChildDied
from ..core.progress import Progress
from ..core.windows import Window
from ..runtimes.reader import Floats, RuntimeFailure
from ..vocab.byte_text import shown
from ..vocab.tokenizer import Source
from .cosine_gates import judge_cosine
from .embeddings_part import CosineGate, EmbeddingsPart, Similarity, WorstText
from .findings import Finding, undecided, verdict_of
from .logits import Read, groups

WORST = 12
Values = npt.NDArray[Any]
_SHOWN_TOKENS = 48
_TIE = 1e-6  # of cosines: texts that are about equally similar


class EncoderReader(Protocol):
    """What gives hidden states; methods raise RuntimeFailure, and ChildDied, which is no verdict."""

    def states(self, window: Window) -> Floats:
        """``(positions, hidden)``."""
        ...

    def embedding(self, window: Window) -> Floats | None:
        """The runtime's own embedding ``(hidden,)``; None where the artifact makes none."""
        ...


@dataclass
class SimilarityMeasure:
    """Gathers the figures text by text."""

    pooling: Pooling
    cosines: list[float] = field(default_factory=list)
    at_positions: list[Values] = field(default_factory=list)
    vectors: list[tuple[Values, Values]] = field(default_factory=list)
    differences: list[tuple[float, float, int]] = field(default_factory=list)
    same_gelu: list[float] = field(default_factory=list)
    not_finite: int = 0

    def add(
        self, expected: Floats, found: Floats, embedding: Floats | None, same_gelu: Floats | None
    ) -> None:
        """Both sides' hidden states of a text, the file's embedding, and fp32's with llama.cpp's GELU."""
        if expected.shape != found.shape:
            raise RuntimeFailure(f"the file gives hidden states of {found.shape}, expected {expected.shape}")
        if not (np.isfinite(expected).all() and np.isfinite(found).all()):
            self.not_finite += 1
            self.cosines.append(float("nan"))
            return
        wide, other = expected.astype(np.float64), found.astype(np.float64)
        at_positions = _cosines(wide, other)
        self.at_positions.append(at_positions)
        if self.pooling.way is None:
            self.cosines.append(float(at_positions.mean()))
            self.vectors.append((wide.mean(0), other.mean(0)))
        else:
            one, two = pooled(wide, self.pooling), pooled(other, self.pooling)
            two = two if embedding is None else embedding.astype(np.float64)
            self.cosines.append(float(_cosines(one[None], two[None])[0]))
            self.vectors.append((one, two))
        self.differences.append((float(np.square(wide - other).sum()), float(wide.var()), wide.size))
        if same_gelu is not None:
            self.same_gelu.append(float(np.square(same_gelu.astype(np.float64) - other).sum()))

    def figures(self) -> Similarity:
        """What was gathered."""
        cosines = np.array([value for value in self.cosines if np.isfinite(value)])
        if not len(cosines):
            return Similarity(0, 0, self.pooling.way or "none", *(0.0,) * 6, not_finite=self.not_finite)
        positions = np.concatenate(self.at_positions)
        sizes = np.array([size for _, _, size in self.differences])
        scale = (
            float(np.average([variance for _, variance, _ in self.differences], weights=sizes)) * sizes.sum()
        )
        return Similarity(
            texts=len(cosines),
            positions=len(positions),
            pooling=self.pooling.way or "none",
            cosine_mean=float(cosines.mean()),
            cosine_least=float(cosines.min()),
            states_mean=float(positions.mean()),
            states_least=float(positions.min()),
            same_nearest=_same_nearest(self.vectors),
            nmse=sum(each for each, _, _ in self.differences) / max(scale, 1e-30),
            nmse_same_gelu=sum(self.same_gelu) / max(scale, 1e-30) if self.same_gelu else None,
            not_finite=self.not_finite,
        )


def pooled(states: Values, pooling: Pooling) -> Values:
    """The embedding of a text from its hidden states ``(positions, hidden)``; its length does not matter."""
    values: Values = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling.way or "mean"]
    return values


def _cosines(one: Values, other: Values) -> Values:
    """Of each pair of rows."""
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    found: Values = (one * other).sum(1) / np.maximum(lengths, 1e-30)
    return found


def _same_nearest(vectors: Sequence[tuple[Values, Values]]) -> float:
    """The share of texts whose most similar other text is the same on both sides; 1 of fewer than 3."""
    if len(vectors) < 3:
        return 1.0
    expected, found = (_alike(np.array(side)) for side in zip(*vectors, strict=True))
    chosen = expected[np.arange(len(expected)), found.argmax(1)]
    return float((chosen >= expected.max(1) - _TIE).mean())


def _alike(rows: Values) -> Values:
    """Cosines of each row with each other, and the least there is with itself."""
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    alike: Values = rows @ rows.T
    np.fill_diagonal(alike, -2)
    return alike


def compare_embeddings(
    read: Read,
    reader: EncoderReader,
    windows: Sequence[Window],
    pooling: Pooling,
    progress: Progress,
    *,
    same_gelu: Read | None = None,
) -> SimilarityMeasure:
    """Both sides' hidden states and embeddings, text by text; see ``logits.compare`` for the arguments."""
    measure, done = SimilarityMeasure(pooling), 0
    progress("embeddings", 0, len(windows))
    for _, group in groups(windows):
        reading = read(group)
        alike = None if same_gelu is None else same_gelu(group).hidden
        for at, window in enumerate(group):
            states = reader.states(window)
            embedding = None if pooling.way is None else reader.embedding(window)
            measure.add(reading.hidden[at], states, embedding, None if alike is None else alike[at])
            done += 1
            progress("embeddings", done, len(windows))
    return measure


def judged_embeddings(
    measure: SimilarityMeasure, gate: CosineGate, windows: Sequence[Window], source: Source
) -> EmbeddingsPart:
    """The figures against the gate, and the texts whose embeddings differ most."""
    figures = measure.figures()
    findings = judge_cosine(figures, gate)
    order = sorted(
        range(len(measure.cosines)), key=lambda at: (measure.cosines[at] >= -1, measure.cosines[at])
    )
    worst = tuple(
        WorstText(
            at, len(windows[at].ids), measure.cosines[at], shown(source, windows[at].ids[:_SHOWN_TOKENS])
        )
        for at in order[:WORST]
    )
    return EmbeddingsPart(verdict_of(findings), figures, gate, findings, worst)


def broken_embeddings(failure: RuntimeFailure | ChildDied, runtime: str = "llama.cpp") -> EmbeddingsPart:
    """What there is to say of a file its runtime refuses; where its process died, nothing is decided."""
    if isinstance(failure, ChildDied):
        return EmbeddingsPart("not decided", findings=(undecided(failure, runtime),))
    return EmbeddingsPart("failed", findings=(Finding(runtime, str(failure)),))
