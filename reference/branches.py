"""Several ways through a model's layers at once: the plain one, and branches that leave it somewhere.

On a branch some layers compute otherwise. What it has in common with the plain way is computed once, and
every layer's weights are read once for all ways (by_layer.py says how layers are called one by one).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .by_layer import Batch, Forward, Layered, Walk
from .stand_ins import stood_in

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Branch:
    """Another way through the layers: it leaves the plain one before the layer ``begins``.

    ``along`` surrounds what each layer computes on it, when the layer has run on the plain way and holds its
    weights.
    """

    begins: torch.nn.Module
    along: Callable[[torch.nn.Module], contextlib.AbstractContextManager[Any]]


class SideBySide(Layered):
    """All windows through each layer, on all ways."""

    def read(
        self,
        forwards: Sequence[Forward],
        trial: Forward,
        branches: Sequence[Branch],
        step: Callable[[], None],
    ) -> Iterator[list[Any]]:
        """What all ``forwards`` return, first on the plain way, then on each of ``branches`` in their order.

        ``trial`` is a forward of few tokens. ``step`` is called whenever all batches have gone through a
        layer on one way. Raises BetweenLayers.
        """
        with self._walk() as walk, self._streamed.quiet():
            plain = [Batch(forward, stood_in) for forward in forwards]
            ways: dict[int, list[Batch]] = {}
            tried = Batch(trial, lambda output: output)
            for number, stack in enumerate(self._stacks):
                for place, layer in enumerate(stack):
                    with self._streamed.held():
                        if not place:
                            walk.try_out(tried, number)
                            for batch in itertools.chain(plain, *ways.values()):
                                walk.note_calls(batch, number)
                        begun = [index for index, each in enumerate(branches) if each.begins is layer]
                        ways |= {index: [batch.parted() for batch in plain] for index in begun}
                        _advance(walk, plain, layer, place, step)
                        for index, batches in ways.items():
                            with branches[index].along(layer):
                                _advance(walk, batches, layer, place, step)
            with self._streamed.held():
                for batches in (plain, *(ways[index] for index in range(len(branches)))):
                    yield [walk.forward(batch, len(self._stacks), {}) for batch in batches]


def _advance(
    walk: Walk, batches: Sequence[Batch], layer: torch.nn.Module, place: int, step: Callable[[], None]
) -> None:
    for batch in batches:
        walk.advance(batch, layer, place)
    step()
