"""How far the correlations of each matrix's inputs are trusted, when codes are chosen by them.

They are measured on two halves of the text, and codes of some rows are chosen by one half with correlations
shrunk towards the diagonal by each of STRENGTHS, and judged by the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..core.progress import Progress, silent
from ..core.tensor import Tensor
from . import feedback, ggml
from .code_layouts import layout_of
from .feedback import Correlated
from .formats import Format
from .full_statistics import HALVES, FullStatistics, Site
from .ggml import Bytes, Floats
from .optimize import PLAIN, Key, Optimization, Trial

STRENGTHS = (0.1, 0.3, 0.6)
SAMPLE = 64
"""Rows that strengths are tried on."""
WIDEST = 4096
"""Columns that strengths are tried on: a factorization takes the third power."""
_CLEARLY = 0.99  # of the loss of plain encoding, on either half
_ERRORS = 2.0  # standard errors, over rows


def of_half(statistics: FullStatistics, site: Site, half: int) -> Correlated:
    """The correlations over one half of the text, of at most WIDEST columns."""
    columns = min(site.columns, WIDEST)
    squares = statistics.squares(site)[half, :columns] / np.float32(site.counts[half])
    return feedback.spread(statistics.correlations(site, half, columns), squares)


RULE = "held-out-halves-1"
"""How strengths are found, as a file says it; another number with every change of the choice."""

_Member = tuple[Tensor, int, Sequence[Format]]
"""A matrix of a site: its tensor, which of a stack's it is, and the formats to try."""

Encode = Callable[[Tensor, Format, Floats, int], Bytes]
"""Encodes rows of a matrix of a tensor plainly, with importance data."""


def optimization(
    statistics: FullStatistics,
    tensors: Sequence[tuple[Tensor, Sequence[Format]]],
    encode: Encode,
    *,
    threads: int,
    progress: Progress = silent,
    told: Callable[[Mapping[Key, Trial]], None] = lambda trials: None,
) -> Optimization:
    """Find out for each of ``tensors`` how far to trust its statistics in each of its formats.

    ``told`` is called with what was found of each site, in one thread.
    """
    work: dict[Site, list[_Member]] = {}
    trials: dict[Key, Trial] = {}
    for tensor, formats in tensors:
        known = [format for format in dict.fromkeys(formats) if layout_of(format) is not None]
        matrices = range(tensor.shape[0] if len(tensor.shape) == 3 else 1)
        sites = [statistics.members.get((tensor.name, matrix)) for matrix in matrices]
        for matrix, site in enumerate(sites) if any(sites) else ():
            if site is None:  # an expert that saw too little: the manifest counts on every one of a stack
                trials |= {(tensor.name, matrix, format.name): Trial(PLAIN, 1.0) for format in known}
            elif known:
                work.setdefault(site, []).append((tensor, matrix, known))
    feedback.set_for("chosen")  # refuses before any work

    def choose(site: Site) -> dict[Key, Trial]:
        return _tried(statistics, site, work[site], encode)

    progress("optimize", 0, len(work))
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(choose, site) for site in work]
        try:
            for done, future in enumerate(futures, 1):
                trials |= future.result()
                told(future.result())
                progress("optimize", done, len(work))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return Optimization(statistics, trials)


@dataclass(frozen=True)
class _Sample:
    """Some rows of a matrix: weights and their plain encoding; ``plain`` its losses on each half."""

    key: Key
    format: Format
    weights: Floats
    data: Bytes
    plain: tuple[npt.NDArray[np.float64], ...]


def _tried(
    statistics: FullStatistics, site: Site, members: Sequence[_Member], encode: Encode
) -> dict[Key, Trial]:
    """The best strength for each matrix of a site."""
    judges = [of_half(statistics, site, half) for half in range(HALVES)]
    samples = [sample for member in members for sample in _samples(*member, encode, judges)]
    lost: dict[Key, dict[float, list[npt.NDArray[np.float64]]]] = {sample.key: {} for sample in samples}
    for strength in STRENGTHS:
        for half, judge in enumerate(judges):
            other = judges[1 - half]
            learned = Correlated(other.matrix.copy(), other.roots)
            feedback.shrink(learned, strength)
            if not feedback.factor(learned):
                break
            for sample in samples:
                data = sample.data.copy()
                feedback.refine(sample.format, sample.weights, data, learned)
                losses = feedback.losses(sample.format, sample.weights, data, judge)
                lost[sample.key].setdefault(strength, []).append(losses)
    return {sample.key: _best(sample, lost[sample.key]) for sample in samples}


def _samples(
    tensor: Tensor, matrix: int, formats: Sequence[Format], encode: Encode, judges: Sequence[Correlated]
) -> Iterator[_Sample]:
    rows = some_rows(tensor, matrix)
    columns = min(rows.shape[1], WIDEST)
    weights = np.ascontiguousarray(rows[:, :columns])
    for format in formats:
        encoded = encode(tensor, format, rows, matrix).reshape(len(rows), -1)
        data = np.ascontiguousarray(encoded[:, : format.row_bytes(columns)]).reshape(-1)
        plain = tuple(feedback.losses(format, weights, data, judge) for judge in judges)
        yield _Sample((tensor.name, matrix, format.name), format, weights, data, plain)


def some_rows(tensor: Tensor, matrix: int) -> Floats:
    """SAMPLE rows from all over a matrix, or all, as float32; what is not finite is 0."""
    if len(tensor.shape) == 3:
        rows = tensor.read(matrix, matrix + 1)[0]
        chosen = rows[_places(len(rows))]
    else:
        chosen = np.concatenate([tensor.read(row, row + 1) for row in _places(tensor.rows)])
    return np.nan_to_num(ggml.widened(chosen, tensor.dtype), copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _places(count: int) -> list[int]:
    wanted = min(count, SAMPLE)
    return [at * count // wanted for at in range(wanted)]


def _best(sample: _Sample, lost: Mapping[float, Sequence[npt.NDArray[np.float64]]]) -> Trial:
    """The strength with the least loss on held-out halves, if it is clearly less than plain encoding's."""
    best = Trial(PLAIN, 1.0)
    for strength, halves in lost.items():
        if len(halves) < HALVES:
            continue
        ratios = [_ratio(one, plain) for one, plain in zip(halves, sample.plain, strict=True)]
        ratio = math.fsum(ratios) / HALVES
        if max(ratios) < _CLEARLY and _is_sure(halves, sample.plain) and ratio < best.ratio:
            best = Trial(strength, ratio)
    return best


def _ratio(losses: npt.NDArray[np.float64], plain: npt.NDArray[np.float64]) -> float:
    before = math.fsum(plain)
    return math.fsum(losses) / before if before > 0 else 1.0


def _is_sure(halves: Sequence[npt.NDArray[np.float64]], plain: Sequence[npt.NDArray[np.float64]]) -> bool:
    """Whether the gain is more than chance over rows, paired with the same rows in plain encoding."""
    gains = [float(gain) for one, other in zip(halves, plain, strict=True) for gain in other - one]
    mean = math.fsum(gains) / len(gains)
    spread = math.fsum((gain - mean) ** 2 for gain in gains) / max(1, len(gains) - 1)
    return mean > _ERRORS * math.sqrt(spread / len(gains))
