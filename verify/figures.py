"""How far a file's logits are from the checkpoint's: figures over all positions, gathered block by block.

Definitions are those of llama.cpp's tools/perplexity/perplexity.cpp (kl_divergence), so that figures can be
compared with published ones, with two differences: the checkpoint's probabilities are used as they are,
where that tool stores them in 16 bits and leaves out what is less likely than e⁻¹⁶, and standard errors are
given for any two positions or more, where it prints zero for fewer than ten.

Every position is worked out by itself in float64, and sums over positions are exact (math.fsum), so figures
are the same to the last bit whatever the size and the order of the blocks.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from ..core.windows import Window
from ..runtimes.reader import Floats
from .averages import Doubles, bounded_exp, bounded_ratio, mean, percentile, scatter_of, standard_error
from .measurements import Figures, NotFinite, Positions

TOP = 5
PERCENTILES = (0.0, 0.1, 1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)
_CANDIDATES = 256  # positions remembered for ``worst``
_APART = 8  # positions between two of them, as long as there are others to show
_GROUPS = 64


@dataclass(frozen=True)
class Disagreement:
    """A position where the two models differ, and what each predicts.

    ``right`` is the token that follows in the text; ``reference`` and ``file`` are the five likeliest tokens
    of each with their probabilities, likeliest first.
    """

    window: int
    position: int
    kl: float
    right: int
    right_reference: float
    right_file: float
    reference: tuple[tuple[int, float], ...]
    file: tuple[tuple[int, float], ...]


class _Position(NamedTuple):
    """What is kept of a position.

    ``lead`` is how far the reference's first choice was ahead of the file's, in the reference's logits.
    ``largest`` and ``squared`` are the largest difference of two logits and the sum of squared differences,
    ``mean`` is that of the reference's logits and ``scatter`` the sum of their squared deviations from it.
    """

    window: float
    position: float
    kl: float
    nll_reference: float
    nll_file: float
    same: float
    overlap: float
    lead: float
    largest: float
    squared: float
    mean: float
    scatter: float


class Measure:
    """Figures of a file over ``windows``, whose logits are given in blocks of any size, in any order."""

    def __init__(self, windows: Sequence[Window]) -> None:
        self._windows = windows
        self._vocabulary = 0
        self._kept = array("d")
        self._heap: list[tuple[float, int, int, Disagreement]] = []
        self._not_finite: NotFinite | None = None
        self._same_gelu: list[float] = []

    def add(self, window: int, start: int, reference: Floats, actual: Floats, right: Sequence[int]) -> None:
        """Take in the positions ``start`` and after of the window of that index.

        ``reference`` and ``found`` are the logits (positions, vocabulary) of checkpoint and file, ``right``
        the tokens that follow. Raises ValueError where shapes differ or positions are not of the window.
        """
        if reference.shape != actual.shape or reference.shape[:1] != (len(right),):
            raise ValueError(
                f"logits of shape {reference.shape} and {actual.shape} for {len(right)} positions"
            )
        scored = self._windows[window].scored
        if len(right) and not (start in scored and start + len(right) - 1 in scored):
            raise ValueError(f"positions {start} to {start + len(right) - 1} of window {window} do not count")
        self._vocabulary = reference.shape[1]
        scratch = np.empty((3, self._vocabulary))
        with np.errstate(all="ignore"):  # what is not finite is counted, exp(-1000) may be zero
            for place, token in enumerate(right):
                self._add(window, start + place, reference[place], actual[place], int(token), scratch)

    def _add(
        self, window: int, position: int, reference: Floats, actual: Floats, right: int, scratch: Doubles
    ) -> None:
        # The largest and the smallest say whether all are finite: NaN passes through both.
        bounds = [float(value) for row in (reference, actual) for value in (row.max(), row.min())]
        finite = [math.isfinite(high) and math.isfinite(low) for high, low in (bounds[:2], bounds[2:])]
        if not all(finite):
            self._refuse(window, position, checkpoint=not finite[0], file=not finite[1])
            return
        kl, logs, rest = _compared(reference, actual, bounds[0], bounds[2], scratch)
        nll_reference, nll_file = logs[0] - float(reference[right]), logs[1] - float(actual[right])
        tops = [_likeliest(row) for row in (reference, actual)]
        same = float(tops[0][0] == tops[1][0])
        overlap = len(set(tops[0]) & set(tops[1])) / len(tops[0])
        lead = bounds[0] - float(reference[tops[1][0]])
        kept = _Position(window, position, kl, nll_reference, nll_file, same, overlap, lead, *rest)
        self._kept.extend(kept)
        if kl > 0 and (len(self._heap) < _CANDIDATES or (kl, -window, -position) > self._heap[0][:3]):
            guesses = [
                tuple((token, math.exp(float(row[token]) - log)) for token in top)
                for row, top, log in zip((reference, actual), tops, logs, strict=True)
            ]
            chances = math.exp(-nll_reference), math.exp(-nll_file)
            self._remember(Disagreement(window, position, kl, right, *chances, guesses[0], guesses[1]))

    def add_same_gelu(self, reference: Floats, actual: Floats) -> None:
        """Take in the same positions, once each, where the reference computes GELU as llama.cpp does."""
        with np.errstate(all="ignore"):
            self._same_gelu.append(float(np.square(actual - reference, dtype=np.float64).sum()))

    def take(self, other: Measure, windows: Sequence[int]) -> None:
        """Take in what another has measured of some of the windows; ``windows`` are their indices here."""
        if not other._vocabulary:
            return
        self._vocabulary = other._vocabulary
        rows = np.array(other._kept, np.float64).reshape(-1, len(_Position._fields))
        rows[:, 0] = np.array(windows, np.float64)[rows[:, 0].astype(np.int64)]
        self._kept.extend(rows.reshape(-1).tolist())
        for *_, position in other._heap:
            self._remember(replace(position, window=windows[position.window]))
        if (left_out := other._not_finite) is not None:
            place, sides = windows[left_out.window], (left_out.checkpoint, left_out.file)
            self._refuse(place, left_out.position, *sides, positions=left_out.positions)
        self._same_gelu += other._same_gelu

    def _refuse(
        self, window: int, position: int, checkpoint: bool, file: bool, *, positions: int = 1
    ) -> None:
        before = self._not_finite
        here = NotFinite(positions, window, position, checkpoint=checkpoint, file=file)
        if before is not None:
            first = min(before, here, key=lambda each: (each.window, each.position))
            here = NotFinite(
                before.positions + positions,
                first.window,
                first.position,
                checkpoint=before.checkpoint or checkpoint,
                file=before.file or file,
            )
        self._not_finite = here

    def _remember(self, position: Disagreement) -> None:
        item = (position.kl, -position.window, -position.position, position)
        if len(self._heap) < _CANDIDATES:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)

    def _table(self) -> Doubles:
        """A row a position, in the order of the text; columns as in ``_Position``."""
        rows = np.array(self._kept, np.float64).reshape(-1, len(_Position._fields))
        order = np.lexsort((rows[:, 1], rows[:, 0]))
        table: Doubles = rows[order]
        return table

    def figures(self) -> Figures:
        """The figures so far. All are zero where no position has finite logits on both sides."""
        column = dict(zip(_Position._fields, self._table().T, strict=True))
        kl, nll_reference, nll_file = column["kl"], column["nll_reference"], column["nll_file"]
        count = len(kl)
        dp = np.exp(-nll_file) - np.exp(-nll_reference)
        same = mean(column["same"])
        squared = math.fsum(column["squared"])
        scatter = scatter_of(column["mean"], column["scatter"], self._vocabulary)
        shared = math.fsum(self._same_gelu) if self._same_gelu else math.nan
        return Figures(
            positions=count,
            windows=len(self._windows),
            kl_mean=mean(kl),
            kl_mean_error=standard_error(kl),
            kl_median=percentile(kl, 50),
            kl_99=percentile(kl, 99),
            kl_999=percentile(kl, 99.9),
            kl_max=percentile(kl, 100),
            same_top1=same,
            same_top1_error=math.sqrt(same * (1 - same) / (count - 1)) if count > 1 else 0.0,
            top5_overlap=mean(column["overlap"]),
            dp_mean=mean(dp),
            dp_rms=math.sqrt(mean(dp * dp)),
            dp_percentiles=tuple((percent, percentile(dp, percent)) for percent in PERCENTILES),
            nll_reference=mean(nll_reference),
            nll_file=mean(nll_file),
            perplexity_reference=bounded_exp(mean(nll_reference)),
            perplexity_file=bounded_exp(mean(nll_file)),
            log_ratio=mean(nll_file - nll_reference),
            log_ratio_error=standard_error(nll_file - nll_reference),
            logit_max=percentile(column["largest"], 100),
            logit_rms=math.sqrt(squared / max(count * self._vocabulary, 1)),
            nmse=bounded_ratio(squared, scatter),
            not_finite=self._not_finite,
            other_top1=count - round(math.fsum(column["same"])),
            other_top1_lead=percentile(column["lead"], 100),
            nmse_same_gelu=bounded_ratio(shared, scatter) if math.isfinite(shared) else None,
        )

    def positions(self) -> Positions:
        """Divergence and Δp position by position, in the order of the text; those not finite left out."""
        column = dict(zip(_Position._fields, self._table().T, strict=True))
        dp = np.exp(-column["nll_file"]) - np.exp(-column["nll_reference"])
        return Positions(
            window=tuple(int(window) for window in column["window"]),
            position=tuple(int(position) for position in column["position"]),
            kl=tuple(column["kl"].tolist()),
            dp=tuple(dp.tolist()),
        )

    def worst(self, count: int) -> list[Disagreement]:
        """Positions with the largest divergence, largest first, at most 256 of them.

        Neighbours of one already taken are passed over as long as there are others: where a model has gone
        astray, the next positions say the same. Positions where the models agree exactly are left out.
        """
        ranked = [item[3] for item in sorted(self._heap, key=lambda item: item[:3], reverse=True)]
        taken: list[Disagreement] = []
        for each in ranked:
            near = any(
                other.window == each.window and abs(other.position - each.position) < _APART
                for other in taken
            )
            if len(taken) < count and not near:
                taken.append(each)
        taken += [each for each in ranked if each not in taken][: count - len(taken)]
        return sorted(taken, key=lambda each: (-each.kl, each.window, each.position))


def _compared(
    reference: Floats, actual: Floats, high: float, high_found: float, scratch: Doubles
) -> tuple[float, tuple[float, float], tuple[float, float, float, float]]:
    """The divergence, the logarithms of both sums of exponentials, and the last four of ``_Position``.

    ``high`` and ``high_found`` are the largest logits. One scratch row of float64 each for the shifted logits
    of the two and for what comes of them: a vocabulary of 128,000 then stays in the cache of a core.
    """
    one, other, work = scratch
    np.subtract(actual, high_found, out=other, dtype=np.float64)
    log_found = math.log(float(np.exp(other, out=work).sum()))
    np.subtract(reference, high, out=one, dtype=np.float64)
    total = float(np.exp(one, out=work).sum())
    log = math.log(total)
    np.subtract(one, other, out=other)
    kl = float(np.multiply(work, other, out=work).sum()) / total + log_found - log
    np.add(other, high - high_found, out=other)  # differences of the logits as they are
    largest = max(float(other.max()), -float(other.min()))
    squared = float(np.multiply(other, other, out=other).sum())
    mean = float(one.sum()) / len(one)
    np.subtract(one, mean, out=one)
    scatter = float(np.multiply(one, one, out=one).sum())
    # Rounding can take a divergence of zero below it, never one that means something.
    return max(kl, 0.0), (high + log, high_found + log_found), (largest, squared, high + mean, scatter)


def _likeliest(row: Floats) -> list[int]:
    """Ids of the five largest, largest first, of equal ones the first; fewer in a smaller vocabulary.

    The row is cut into groups; the fifth largest of their maxima is a bound that few entries reach.
    """
    width = len(row) // _GROUPS
    if width < TOP:
        reach = np.arange(len(row))
    else:
        maxima = row[: width * _GROUPS].reshape(_GROUPS, width).max(axis=0)
        reach = np.flatnonzero(row >= np.partition(maxima, width - TOP)[width - TOP])
    likeliest: list[int] = reach[np.argsort(-row[reach], kind="stable")[:TOP]].tolist()
    return likeliest
