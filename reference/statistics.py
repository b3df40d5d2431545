"""What is learned from the inputs of modules: statistics of one module each, over all windows.

A statistic sees what flows into one linear module, window by window, while the fp32 reference computes, and
keeps what an encoder needs of it: today the sum of squares of every column, tomorrow, say, X^T X.

A large one (X^T X has columns x columns numbers, some gigabytes for all modules of a model together) should
be finished as soon as its module has seen all windows. ``Watch.finished`` says when that is. Where all
windows go through a layer before the next one is read (``Reference.read(by_layer=True)``), it is called
behind each layer for the modules in it, so that no more than the statistics of one layer are in memory;
otherwise in the end for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Statistic(Protocol[T_co]):
    """A statistic of the inputs of one module."""

    def add(self, values: Floats) -> None:
        """Take in what flowed into the module for one window, ``(positions, columns)``.

        The array holds during the call only.
        """
        ...

    def finish(self) -> T_co:
        """What has been learned; nothing is added after that."""
        ...


class Gathered(Generic[T]):
    """A statistic for each module anything flows into; its ``add`` is what ``Watch.observe`` needs."""

    def __init__(self, make: Callable[[], Statistic[T]]) -> None:
        """``make`` begins the statistic of a module."""
        self._make = make
        self._begun: dict[str, Statistic[T]] = {}

    def add(self, name: str, window: int, values: Floats) -> None:
        """Take in what flowed into a module for one window, ``(positions, columns)``."""
        statistic = self._begun.get(name)
        if statistic is None:
            statistic = self._begun[name] = self._make()
        statistic.add(values)

    def names(self) -> tuple[str, ...]:
        """The modules whose statistics are not finished, in the order they first ran."""
        return tuple(self._begun)

    def finish(self, name: str) -> T:
        """What has been learned of a module; its statistic is gone then."""
        return self._begun.pop(name).finish()


@dataclass(frozen=True)
class Squares:
    """The sum of squares of each column, float64 ``(columns,)``, over ``count`` positions."""

    sums: npt.NDArray[np.float64]
    count: int


class SumOfSquares:
    """The statistic behind importance data: the diagonal of X^T X."""

    def __init__(self) -> None:
        self._sums: npt.NDArray[np.float64] | None = None
        self._count = 0

    def add(self, values: Floats) -> None:
        """See ``Statistic.add``."""
        sums = np.einsum("pc,pc->c", values, values, dtype=np.float64)
        if self._sums is not None:
            sums += self._sums
        self._sums = sums
        self._count += len(values)

    def finish(self) -> Squares:
        """See ``Statistic.finish``."""
        return Squares(np.empty(0) if self._sums is None else self._sums, self._count)
