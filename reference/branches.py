"""Several ways through a model's layers at once: the plain one, and branches that leave it somewhere.

On a branch some layers compute otherwise. What it has in common with the plain way is computed once, and
every layer's weights are read once for all ways (by_layer.py says how layers are called one by one).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .by_layer import Batch, Forward, Layered, Walk
from .stand_ins import stood_in

if TYPE_CHECKING:
    import torch

    from .saved_pass import SavedPass


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
        saved: SavedPass | None = None,
    ) -> Iterator[list[Any]]:
        """What all ``forwards`` return, first on the plain way, then on each of ``branches`` in their order.

        ``trial`` is a forward of few tokens. ``step`` is called whenever all batches have gone through a
        layer on one way. Layers that are ``saved`` are not computed again on any. Raises BetweenLayers.
        """
        with self._walk() as walk, self._streamed.quiet():
            plain = [Batch(forward, stood_in) for forward in forwards]
            ways: dict[int, list[Batch]] = {}
            tried = Batch(trial, lambda output: output)
            done, counter = 0 if saved is None else saved.layers, itertools.count()
            self._streamed.skip(list(itertools.chain(*self._stacks))[:done])
            for number, stack in enumerate(self._stacks):
                for place, layer in enumerate(stack):
                    at, ends = next(counter), place == len(stack) - 1
                    with self._streamed.held():
                        if not place:
                            walk.try_out(tried, number)
                            for batch in _every(plain, ways):
                                walk.note_calls(batch, number)
                        begun = [index for index, each in enumerate(branches) if each.begins is layer]
                        ways |= {index: [batch.parted() for batch in plain] for index in begun}
                        if saved is not None and at < done:
                            if ends or at == done - 1:
                                _put(walk, _every(plain, ways), saved, at)
                            for _ in range(1 + len(ways)):
                                step()
                            continue
                        _advance(walk, plain, layer, place, step)
                        for index, batches in ways.items():
                            with branches[index].along(layer):
                                _advance(walk, batches, layer, place, step)
                    if saved is not None:
                        saved.keep(at, [batch.state for batch in _every(plain, ways)], ends=ends)
            with self._streamed.held():
                for batches in (plain, *(ways[index] for index in range(len(branches)))):
                    yield [walk.forward(batch, len(self._stacks), {}) for batch in batches]


def _every(plain: Sequence[Batch], ways: Mapping[int, Sequence[Batch]]) -> list[Batch]:
    """The batches of all ways, in the order in which these begin."""
    return [*plain, *itertools.chain(*ways.values())]


def _put(walk: Walk, batches: Sequence[Batch], saved: SavedPass, layer: int) -> None:
    """Let all batches stand behind a layer that another run has finished."""
    for index, batch in enumerate(batches):
        walk.put(batch, saved.load(layer, index))


def _advance(
    walk: Walk, batches: Sequence[Batch], layer: torch.nn.Module, place: int, step: Callable[[], None]
) -> None:
    for batch in batches:
        walk.advance(batch, layer, place)
    step()
