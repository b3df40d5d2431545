"""Which of several sizes of each tensor to take, so that the whole loses least within a size, or the reverse.

A multiple-choice knapsack. What each tensor costs and loses is given; that losses add up is the assumption
(quant/choice_losses.py says where the numbers come from). Steps along the lower convex hull of each tensor's
candidates, the steepest first, are optimal for every total they pass through (Lagrange); what is left between
two of them is filled by single steps and by exchanges, each of which loses less or weighs less than before,
so it ends.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """One way to store a tensor: a format's name, its bytes in the file, and what it loses (nats)."""

    format: str
    bytes: int
    loss: float


@dataclass(frozen=True)
class Item:
    """A tensor, or several that take the same format, with its candidates."""

    name: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Chosen:
    """A candidate of each item, in the order of the items, with the sums."""

    candidates: tuple[Candidate, ...]
    bytes: int
    loss: float


def least_loss(items: Sequence[Item], most_bytes: int) -> Chosen | None:
    """The candidates that lose least in at most ``most_bytes``; None where the smallest of all do not fit.

    At most one step away from the optimum: the loss is never more than the Lagrangian bound plus what one
    step of one item gains.
    """
    if _Search(items).bytes > most_bytes:
        return None
    found = []
    for beyond in (0, 1, 2):  # steps that do not fit and are taken all the same, to go back elsewhere
        search, left = _Search(items), beyond
        for place, (more, _, rung, following) in search.steps():
            if search.at[place] == rung and (search.bytes + more <= most_bytes or left):
                left -= search.bytes + more > most_bytes
                search.take(place, following)
        search.shed_to(most_bytes)
        while search.improve_within(most_bytes):
            pass
        found.append(search.chosen())
    return min(found, key=lambda each: each.loss)


def least_bytes(items: Sequence[Item], most_loss: float) -> Chosen | None:
    """The smallest candidates that lose at most ``most_loss`` together; None where the best lose more."""
    search = _Search(items)
    for place, gained in search.steps():
        if search.loss <= most_loss:
            break
        search.take(place, gained[3])
    if search.loss > most_loss:
        return None
    while search.shrink_within(most_loss):
        pass
    found = search.chosen()
    for _ in range(_TRIES):
        smaller = least_loss(items, found.bytes - 1)
        if smaller is None or smaller.loss > most_loss:
            break
        found = smaller
    return found


_Step = tuple[int, float, int, int]
"""Bytes more, loss less, and the candidates it leads from and to."""

_Wanted = tuple[float, tuple[int, int], tuple[int, int] | None] | None
"""What is gained, and the items to move, the first up (or down), the second, if any, the other way."""

_TRIES = 6
_SLACK = 1e-12  # of the loss: what sums of floats may differ by without being a gain


class _Search:
    """The candidates of each item that no other beats in both, the smallest first, and where each stands."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.ladders = [ladder(item.candidates) for item in items]
        self.at = [0] * len(items)
        self.bytes = sum(rungs[0].bytes for rungs in self.ladders)
        self.loss = sum(rungs[0].loss for rungs in self.ladders)

    def take(self, place: int, rung: int) -> None:
        """Let an item stand on another of its candidates."""
        before, after = self.ladders[place][self.at[place]], self.ladders[place][rung]
        self.at[place] = rung
        self.bytes += after.bytes - before.bytes
        self.loss = sum(rungs[at].loss for rungs, at in zip(self.ladders, self.at, strict=True))

    def steps(self) -> list[tuple[int, _Step]]:
        """The steps along the hulls of all items, the most gained a byte first."""
        found = [(place, step) for place, rungs in enumerate(self.ladders) for step in _hull_steps(rungs)]
        return sorted(found, key=lambda each: (-each[1][1] / each[1][0], each[0], each[1][2]))

    def moves(self, place: int) -> Iterator[tuple[int, float, int]]:
        """Where an item could stand instead: bytes more (or less), loss less (or more), and the rung."""
        rungs, at = self.ladders[place], self.at[place]
        for rung, each in enumerate(rungs):
            if rung != at:
                yield each.bytes - rungs[at].bytes, rungs[at].loss - each.loss, rung

    def shed_to(self, most_bytes: int) -> None:
        """Step down where least is lost a byte that is still too much, until all fits."""
        while self.bytes > most_bytes:
            over = self.bytes - most_bytes
            downs = [(-gain / min(-more, over), more, place, rung)
                     for place, more, gain, rung in self._all_moves() if more < 0]  # fmt: skip
            _, _, place, rung = min(downs)
            self.take(place, rung)

    def improve_within(self, most_bytes: int) -> bool:
        """Make the step, or the exchange of two items' steps, that gains most within ``most_bytes``."""
        room = most_bytes - self.bytes
        ups = [(more, gain, place, rung) for place, more, gain, rung in self._all_moves() if more > 0]
        best = _BestWithin(ups)
        found = best.gain(room, besides=None)
        wanted: _Wanted = (found[0], found[1:], None) if found else None
        for place, more, gain, rung in self._all_moves():
            if more >= 0:
                continue
            up = best.gain(room - more, besides=place)
            total = gain + up[0] if up else 0.0
            if up and (wanted is None or total > wanted[0]):
                wanted = total, up[1:], (place, rung)
        if wanted is None or wanted[0] <= _SLACK * self.loss:
            return False
        for move in wanted[1:]:
            if move is not None:
                self.take(*move)
        return True

    def shrink_within(self, most_loss: float) -> bool:
        """Make the step, or the exchange of two items' steps, that saves most bytes within ``most_loss``."""
        room = most_loss - self.loss
        downs = [(-gain, -more, place, rung) for place, more, gain, rung in self._all_moves() if more < 0]
        best = _BestWithin(downs)
        found = best.gain(room, besides=None)
        wanted: _Wanted = (found[0], found[1:], None) if found else None
        for place, more, gain, rung in self._all_moves():
            if more <= 0:
                continue
            down = best.gain(room + gain, besides=place)
            if down and down[0] - more > (0 if wanted is None else wanted[0]):
                wanted = down[0] - more, down[1:], (place, rung)
        if wanted is None or wanted[0] <= 0:
            return False
        before = list(self.at)
        for move in wanted[1:]:
            if move is not None:
                self.take(*move)
        if self.loss > most_loss:  # by the last digit of a sum
            for place, rung in enumerate(before):
                self.take(place, rung)
            return False
        return True

    def _all_moves(self) -> Iterator[tuple[int, int, float, int]]:
        for place in range(len(self.ladders)):
            for more, gain, rung in self.moves(place):
                yield place, more, gain, rung

    def chosen(self) -> Chosen:
        """Where all stand."""
        found = tuple(rungs[at] for rungs, at in zip(self.ladders, self.at, strict=True))
        return Chosen(found, sum(each.bytes for each in found), sum(each.loss for each in found))


class _BestWithin:
    """Of moves (cost, gain, item, rung), the one that gains most at a cost of at most so much."""

    def __init__(self, moves: Sequence[tuple[float, float, int, int]]) -> None:
        self._costs: list[float] = []
        self._best: list[list[tuple[float, int, int]]] = []  # of two items, since one may be left out
        tops: list[tuple[float, int, int]] = []
        for cost, gain, place, rung in sorted(moves):
            others = [each for each in tops if each[1] != place]
            own = max([(gain, place, rung), *(each for each in tops if each[1] == place)])
            tops = sorted([*others, own], reverse=True)[:2]
            self._costs.append(cost)
            self._best.append(tops)

    def gain(self, most: float, *, besides: int | None) -> tuple[float, int, int] | None:
        """Gain, item and rung; of any item but ``besides``."""
        place = bisect.bisect_right(self._costs, most)
        tops = self._best[place - 1] if place else []
        return next((each for each in tops if each[1] != besides), None)


def ladder(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates that are not beaten: each larger one loses less than all that are smaller."""
    rungs: list[Candidate] = []
    for each in sorted(candidates, key=lambda each: (each.bytes, each.loss)):
        if not rungs or each.loss < rungs[-1].loss:
            rungs.append(each)
    return rungs


def _hull_steps(rungs: Sequence[Candidate]) -> Iterator[_Step]:
    """From corner to corner of the lower convex hull; along it less and less is gained a byte."""
    corners: list[int] = []
    for rung, each in enumerate(rungs):
        while len(corners) > 1 and not _bends(rungs[corners[-2]], rungs[corners[-1]], each):
            corners.pop()
        corners.append(rung)
    for first, last in itertools.pairwise(corners):
        yield (
            rungs[last].bytes - rungs[first].bytes,
            rungs[first].loss - rungs[last].loss,
            first,
            last,
        )


def _bends(first: Candidate, middle: Candidate, last: Candidate) -> bool:
    """Whether ``middle`` lies below the line from ``first`` to ``last``."""
    before = (first.loss - middle.loss) * (last.bytes - middle.bytes)
    behind = (middle.loss - last.loss) * (middle.bytes - first.bytes)
    return before > behind
