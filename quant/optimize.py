"""``--optimize``: the same formats and scales, codes chosen with the correlations of the inputs in view.

How far correlations are trusted is found out for each matrix: they are measured on two halves of the text,
and codes of some rows are chosen by one half with correlations shrunk towards the diagonal by each of
STRENGTHS, and judged by the other. Where no strength is clearly better than plain encoding with importance
data, that is what is written, to the byte. Everything is computed in a fixed order, so the same statistics
file gives the same bytes everywhere.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..core.errors import InputError
from ..core.gguf_file import shown
from ..core.progress import Progress, silent
from ..core.tensor import Array, DType, Tensor
from . import feedback, ggml
from .code_layouts import layout_of
from .feedback import Correlated
from .formats import Format
from .full_statistics import HALVES, FullStatistics, Site
from .ggml import Bytes, Floats
from .native import Kernels

METHOD = "error feedback and coordinate descent, 1"
"""What a file made with it says; another number with every change of the bytes."""

STRENGTHS = (0.1, 0.3, 0.6)
PLAIN = 1.0
"""The strength at which nothing of the correlations is left."""

SAMPLE = 64
"""Rows that strengths are tried on."""
WIDEST = 4096
"""Columns that strengths are tried on: a factorization takes the third power."""
_CLEARLY = 0.99  # of the loss of plain encoding, on either half
_ERRORS = 2.0  # standard errors, over rows
_KEPT = 1 << 30  # bytes of factored matrices kept for the next piece

Key = tuple[str, int, str]
"""A tensor's name, which of a stack's matrices, and a format's name."""


@dataclass(frozen=True)
class Trial:
    """How a strength did: the loss on held-out halves against plain encoding's; 1 is the same."""

    strength: float
    ratio: float


@dataclass(frozen=True)
class Optimization:
    """The statistics and, for each matrix in each format, how far they are shrunk; PLAIN where not listed.

    It can be pickled and used in other processes that see the same file.
    """

    statistics: FullStatistics
    trials: Mapping[Key, Trial]

    def choosers(self, tensor: Tensor) -> Choosers:
        """What chooses the codes of a tensor."""
        return Choosers(self, tensor.name)

    def to_manifest(self) -> dict[str, dict[str, Any]]:
        """Strength and held-out ratio of each matrix, by tensor, of a stack's matrices in lists."""
        found: dict[str, dict[str, Any]] = {}
        for (name, _, format), trial in sorted(self.trials.items()):
            one = found.setdefault(name, {}).setdefault(format, {"strength": [], "held_out": []})
            one["strength"].append(trial.strength)
            one["held_out"].append(round(trial.ratio, 4))
        return found


@dataclass(frozen=True)
class Choosers:
    """Chooses codes of the rows of one tensor."""

    optimization: Optimization
    name: str

    def choose(
        self, format: Format, weights: Floats, data: Bytes, matrix: int, kernels: Kernels = "chosen"
    ) -> None:
        """Choose the codes of ``data``, some rows of that matrix of a stack, encoded from ``weights``."""
        trial = self.optimization.trials.get((self.name, matrix, format.name))
        if trial is None or trial.strength == PLAIN or not weights.size:
            return
        statistics = self.optimization.statistics
        site = statistics.members[self.name, matrix]
        feedback.refine(
            format, weights, data, _factors.get(statistics, site, trial.strength), kernels=kernels
        )

    def choose_all(
        self,
        encoded: Sequence[tuple[Format, Array]],
        source: Array,
        dtype: DType,
        first: int,
        kernels: Kernels,
    ) -> None:
        """Choose the codes of a slab: ``source`` (rows, …, columns) from row ``first`` of the tensor on.

        ``encoded`` is what it, finite weights all, was made to in each format.
        """
        wanted = {format: data for format, data in encoded if self._chooses(format)}
        if not wanted:
            return
        weights = np.empty(source.shape, np.float32)
        ggml.to_float32(np.ascontiguousarray(source), dtype, weights, finite=True)
        stacked = weights if weights.ndim == 3 else weights[None]
        for format, data in wanted.items():
            parts = data.reshape(len(stacked), -1)
            for at, rows in enumerate(stacked):
                self.choose(format, rows, parts[at], first + at if weights.ndim == 3 else 0, kernels)

    def _chooses(self, format: Format) -> bool:
        return any(
            (name, other) == (self.name, format.name) and trial.strength != PLAIN
            for (name, _, other), trial in self.optimization.trials.items()
        )


# Correlations of a site


def whole(statistics: FullStatistics, site: Site, strength: float) -> Correlated:
    """The correlations over all of the text."""
    sums = statistics.squares(site)
    total = sums[0] + sums[1]
    shares = np.sqrt(np.divide(sums, total, out=np.zeros_like(sums), where=total > 0))
    halves = [statistics.correlations(site, half, site.columns) for half in range(HALVES)]

    def rows() -> Iterator[Floats]:
        start = 0
        for one, other in zip(*halves, strict=True):
            stop = one.shape[1]
            weighed = [
                part * share[start:stop, None] * share[:stop]
                for part, share in zip((one, other), shares, strict=True)
            ]
            yield weighed[0] + weighed[1]
            start = stop

    return feedback.spread(rows(), total / np.float32(sum(site.counts)), strength)


def of_half(statistics: FullStatistics, site: Site, half: int, strength: float) -> Correlated:
    """The correlations over one half of the text, of at most WIDEST columns."""
    columns = min(site.columns, WIDEST)
    squares = statistics.squares(site)[half, :columns] / np.float32(site.counts[half])
    return feedback.spread(statistics.correlations(site, half, columns), squares, strength)


class _Factors:
    """Factored correlations, the last few of them; those who want the same wait for each other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: dict[Any, threading.Lock] = {}
        self._kept: OrderedDict[Any, Correlated] = OrderedDict()

    def get(self, statistics: FullStatistics, site: Site, strength: float) -> Correlated:
        key = statistics.path, statistics.sha256, site.number, strength
        with self._lock:
            own = self._locks.setdefault(key, threading.Lock())
        with own:
            with self._lock:
                found = self._kept.get(key)
                if found is not None:
                    self._kept.move_to_end(key)
                    return found
            found = whole(statistics, site, strength)
            if not feedback.factor(found):  # halves could be, and shrunk correlations of both can
                raise InputError(
                    f"the statistics {statistics.path}: those of site {site.number} are no correlations",
                    hint="make them again with kconv imatrix --full",
                )
            with self._lock:
                self._kept[key] = found
                while len(self._kept) > 1 and sum(m.matrix.nbytes for m in self._kept.values()) > _KEPT:
                    self._kept.popitem(last=False)
            return found


_factors = _Factors()


# Choosing strengths


def refuse_unfit(statistics: FullStatistics, tensors: Iterable[Tensor]) -> None:
    """Raise InputError where statistics are of a model of other tensors or widths."""
    known = {tensor.name: tensor for tensor in tensors}
    for (name, expert), site in statistics.members.items():
        tensor = known.get(name)
        stacked = tensor is not None and len(tensor.shape) == 3
        if (
            tensor is None
            or site.columns != tensor.shape[-1]
            or expert >= (tensor.shape[0] if stacked else 1)
        ):
            raise InputError(
                f"the statistics {statistics.path} belong to another model: {shown(name)} has "
                f"{site.columns} columns there, expected {'none' if tensor is None else tensor.shape[-1]}",
                hint="make them of this checkpoint: kconv imatrix CHECKPOINT --full --text FILE",
            )


Encode = Callable[[Tensor, Format, Floats, int], Bytes]
"""Encodes rows of a matrix of a tensor plainly, with importance data."""


def optimization(
    statistics: FullStatistics,
    tensors: Sequence[tuple[Tensor, Sequence[Format]]],
    encode: Encode,
    *,
    threads: int,
    progress: Progress = silent,
) -> Optimization:
    """Find out for each of ``tensors`` how far to trust its statistics in each of its formats."""
    work: dict[Site, list[tuple[Tensor, int, Format]]] = {}
    for tensor, formats in tensors:
        for matrix in range(tensor.shape[0] if len(tensor.shape) == 3 else 1):
            site = statistics.members.get((tensor.name, matrix))
            for format in dict.fromkeys(formats):
                if site is not None and layout_of(format) is not None:
                    work.setdefault(site, []).append((tensor, matrix, format))
    feedback.set_for("chosen")  # refuses before any work
    trials: dict[Key, Trial] = {}
    done = 0

    def choose(site: Site) -> dict[Key, Trial]:
        return _tried(statistics, site, work[site], encode)

    progress("optimize", 0, len(work))
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(choose, site) for site in work]
        try:
            for future in futures:
                trials |= future.result()
                done += 1
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
    statistics: FullStatistics, site: Site, members: Sequence[tuple[Tensor, int, Format]], encode: Encode
) -> dict[Key, Trial]:
    """The best strength for each matrix of a site."""
    judges = [of_half(statistics, site, half, 0.0) for half in range(HALVES)]
    samples = [_sample(*member, encode, judges) for member in members]
    lost: dict[Key, dict[float, list[npt.NDArray[np.float64]]]] = {sample.key: {} for sample in samples}
    for strength in STRENGTHS:
        for half, judge in enumerate(judges):
            learned = of_half(statistics, site, 1 - half, strength)
            if not feedback.factor(learned):
                break
            for sample in samples:
                data = sample.data.copy()
                feedback.refine(sample.format, sample.weights, data, learned)
                losses = feedback.losses(sample.format, sample.weights, data, judge)
                lost[sample.key].setdefault(strength, []).append(losses)
    return {sample.key: _best(sample, lost[sample.key]) for sample in samples}


def _sample(
    tensor: Tensor, matrix: int, format: Format, encode: Encode, judges: Sequence[Correlated]
) -> _Sample:
    rows = some_rows(tensor, matrix)
    data = encode(tensor, format, rows, matrix).reshape(len(rows), -1)
    if rows.shape[1] > WIDEST:
        data = np.ascontiguousarray(data[:, : format.row_bytes(WIDEST)])
        rows = np.ascontiguousarray(rows[:, :WIDEST])
    flat = data.reshape(-1)
    plain = tuple(feedback.losses(format, rows, flat, judge) for judge in judges)
    return _Sample((tensor.name, matrix, format.name), format, rows, flat, plain)


def some_rows(tensor: Tensor, matrix: int) -> Floats:
    """SAMPLE rows from all over a matrix, or all, as float32; what is not finite is 0."""
    if len(tensor.shape) == 3:
        rows = tensor.read(matrix, matrix + 1)[0]
        chosen = rows[_places(len(rows))]
    else:
        chosen = np.concatenate([tensor.read(row, row + 1) for row in _places(tensor.rows)])
    out = np.empty(chosen.shape, np.float32)
    ggml.to_float32(np.ascontiguousarray(chosen), tensor.dtype, out)
    return np.nan_to_num(out, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


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
