"""``--optimize``: the same formats and scales, codes chosen with the correlations of the inputs in view.

How far correlations are trusted is found out for each matrix (quant/strengths.py). Where nothing is clearly
better than plain encoding with importance data, that is what is written, to the byte. Everything is computed
in a fixed order, so the same statistics file gives the same bytes everywhere.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core.errors import InputError
from ..core.gguf_file import shown
from ..core.tensor import Array, DType, Tensor
from . import feedback, ggml
from .feedback import Correlated
from .formats import Format
from .full_statistics import HALVES, FullStatistics, Site
from .ggml import Bytes, Floats
from .kept_codes import KeptCodes
from .native import Kernels

METHOD = "error feedback and coordinate descent, 1"
"""What a file made with it says; another number with every change of the bytes."""

PLAIN = 1.0
"""The strength at which nothing of the correlations is left."""

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

    ``kept`` are the codes that have been chosen already. Without them it can be pickled and used in other
    processes that see the same file.
    """

    statistics: FullStatistics
    trials: Mapping[Key, Trial]
    kept: KeptCodes | None = field(default=None, compare=False, repr=False)

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
        trial = self._trial(matrix, format)
        if trial is None or not weights.size:
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
        matrices = range(first, first + len(source)) if source.ndim == 3 else range(1)
        wanted = {
            format: data
            for format, data in encoded
            if any(self._trial(matrix, format) for matrix in matrices)
        }
        if not wanted:
            return
        weights = ggml.widened(source, dtype, finite=True).reshape(len(matrices), -1, source.shape[-1])
        for format, data in wanted.items():
            parts = data.reshape(len(matrices), -1)
            for matrix, rows, part in zip(matrices, weights, parts, strict=True):
                place = (matrix, 1) if source.ndim == 3 else (first, len(source))
                self._choose_once(format, rows, part, matrix, place, kernels)

    def _choose_once(
        self,
        format: Format,
        weights: Floats,
        data: Bytes,
        matrix: int,
        place: tuple[int, int],
        kernels: Kernels,
    ) -> None:
        """Choose codes, or take those kept of that ``place``: the first row of the tensor, how many."""
        kept, trial = self.optimization.kept, self._trial(matrix, format)
        if kept is None or trial is None or kernels != "chosen":
            self.choose(format, weights, data, matrix, kernels)
            return
        key = (self.name, format.name, trial.strength)
        if not kept.take(key, *place, data):
            self.choose(format, weights, data, matrix, kernels)
            kept.keep(key, *place, data)

    def _trial(self, matrix: int, format: Format) -> Trial | None:
        """What was found out for one of the matrices; None where its codes stay as they are."""
        found = self.optimization.trials.get((self.name, matrix, format.name))
        return None if found is None or found.strength == PLAIN else found


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

    found = feedback.spread(rows(), total / np.float32(sum(site.counts)))
    feedback.shrink(found, strength)
    return found


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
