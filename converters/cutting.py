"""One tensor cut into several: how converters take apart what a checkpoint holds fused.

Gate and up of experts lie in one stack, one after the other or in turns, often turned as well; DeepSeek's
``kv_b`` holds keys and values of each head. Lazily, and back again; values of this kind pickle.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np

from ..core.tensor import Array, DType, Tensor
from .family import Share, Sizes, Transform
from .transforms import read_wide

Order = Literal["blocks", "turns"]


@dataclass(frozen=True)
class Cut:
    """A source seen as ``(groups, rows, columns)`` and divided along ``axis`` 1 or 2 into parts.

    ``lengths`` are theirs; they lie one after the other (``blocks``) or in turns, one row of each.
    ``turned`` says of each whether rows and columns are exchanged, ``flat`` whether the parts have two axes
    although the source is seen with three; ``shape`` is the source's own.
    """

    shape: tuple[int, ...]
    groups: int
    axis: int
    lengths: tuple[int, ...]
    order: Order
    turned: tuple[bool, ...]
    flat: bool

    @property
    def whole(self) -> tuple[int, int, int]:
        """The source as it is seen."""
        if len(self.shape) == 3:
            return self.shape[0], self.shape[1], self.shape[2]
        columns = self.shape[1] if len(self.shape) == 2 else 1
        return self.groups, self.shape[0] // self.groups, columns

    def part(self, place: int) -> tuple[Transform, Share]:
        """What makes the part of that number, and how the source comes back from all of them."""
        transform = Transform(partial(_cut, self, place), _no_undo)
        return transform, Share(place, len(self.lengths), partial(_joined, self))

    def part_shape(self, place: int) -> tuple[int, ...]:
        """Of a part, as the file has it."""
        groups, rows, columns = self.whole
        shape = (
            (groups, self.lengths[place], columns) if self.axis == 1 else (groups, rows, self.lengths[place])
        )
        if self.turned[place]:
            shape = shape[0], shape[2], shape[1]
        flat = shape[1:] if self.flat else shape
        return flat[:1] if len(self.shape) == 1 else flat

    def rows_of(self, place: int) -> slice:
        """Where along the axis the part lies."""
        if self.order == "turns":
            return slice(place, None, len(self.lengths))
        start = sum(self.lengths[:place])
        return slice(start, start + self.lengths[place])


def cuts(source: Tensor, targets: Sequence[tuple[int, ...]]) -> Iterator[Cut]:
    """Every way to cut a source so that parts of those shapes come out."""
    if len({len(target) for target in targets}) > 1:
        return
    dimensions, of_source = len(targets[0]), len(source.shape)
    if dimensions == 3 and of_source == 3:
        groups, flat = source.rows, False
    elif dimensions == 3 and of_source == 2:
        groups, flat = targets[0][0], False
    elif dimensions == of_source and of_source < 3:
        groups, flat = 1, True
    else:
        return
    if not groups or source.rows % groups:
        return
    for axis, turns in itertools.product((1, 2), itertools.product((False, True), repeat=len(targets))):
        if dimensions == 1 and (axis == 2 or any(turns)):
            continue
        first, last = (0, 1) if flat else (1, 2)
        straight, across = (first, last) if axis == 1 else (last, first)
        along = [across if turn else straight for turn in turns]
        lengths = tuple(target[at] for target, at in zip(targets, along, strict=True))
        orders: tuple[Order, ...] = ("blocks", "turns") if len(set(lengths)) == 1 else ("blocks",)
        for order in orders:
            cut = Cut(source.shape, groups, axis, lengths, order, turns, flat)
            fits = sum(lengths) == cut.whole[axis]
            if fits and all(cut.part_shape(at) == target for at, target in enumerate(targets)):
                yield cut


def _cut(cut: Cut, place: int, sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
    (source,) = sources
    shape, read = cut.part_shape(place), partial(_read_part, cut, place, source)
    return replace(source, shape=shape, read=read, granule=shape[0] if cut.flat else 1, stored=None)


def _read_part(cut: Cut, place: int, source: Tensor, start: int, stop: int) -> Array:
    first, last = (0, 1) if cut.flat else (start, stop)
    values = _seen(cut, source, first, last)
    part = values[:, cut.rows_of(place)] if cut.axis == 1 else values[:, :, cut.rows_of(place)]
    part = part.transpose(0, 2, 1) if cut.turned[place] else part
    if not cut.flat:
        return np.ascontiguousarray(part)
    return np.ascontiguousarray(part[0].reshape(cut.part_shape(place))[start:stop])


def _seen(cut: Cut, source: Tensor, first: int, last: int) -> Array:
    """Groups of the source, ``(groups, rows, columns)``."""
    _, rows, columns = cut.whole
    each = 1 if len(cut.shape) == 3 else rows
    return source.read(first * each, last * each).reshape(last - first, rows, columns)


def _joined(cut: Cut, parts: Sequence[Tensor], sizes: Sizes) -> Tensor:
    granule = 1 if len(cut.shape) == 3 else cut.whole[1]
    read = partial(_read_joined, cut, tuple(parts))
    return Tensor(parts[0].name, cut.shape, DType.F32, read, granule)


def _read_joined(cut: Cut, parts: Sequence[Tensor], start: int, stop: int) -> Array:
    _, rows, columns = cut.whole
    each = 1 if len(cut.shape) == 3 else rows
    first, last = start // each, -(-stop // each)
    made = np.empty((last - first, rows, columns), np.float32)
    for place, part in enumerate(parts):
        values = read_wide(part, 0, part.rows)[None] if cut.flat else read_wide(part, first, last)
        values = values.reshape(last - first, *_three(cut, place))
        values = values.transpose(0, 2, 1) if cut.turned[place] else values
        if cut.axis == 1:
            made[:, cut.rows_of(place)] = values
        else:
            made[:, :, cut.rows_of(place)] = values
    flat = made.reshape(-1, *cut.shape[1:])
    return flat[start - first * each : stop - first * each]


def _three(cut: Cut, place: int) -> tuple[int, int]:
    """Rows and columns of a group of a part, as the file has it."""
    shape = cut.part_shape(place)
    return (shape[0], 1) if len(shape) == 1 else (shape[-2], shape[-1])


def _no_undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
    raise NotImplementedError("one part alone does not tell its source: see Share.join")


def parted(groups: int, each: int) -> Transform:
    """Query, key and value in groups, all rows of a kind put together: ``(groups * (each + 2) * width, …)``.

    A group holds the queries of ``each`` heads, then one key and one value (Falcon); with one head a group it
    is what BLOOM and GPT-NeoX have.
    """
    return Transform(partial(_parted, groups, each), partial(_grouped, groups, each))


def _parted(groups: int, each: int, sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
    return _reordered(sources[0], _order(sources[0].rows, groups, each))


def _grouped(groups: int, each: int, target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
    return (_reordered(target, np.argsort(_order(target.rows, groups, each))),)


def _order(rows: int, groups: int, each: int) -> Array:
    places = np.arange(rows).reshape(groups, each + 2, -1)
    return np.concatenate([places[:, :each].ravel(), places[:, each].ravel(), places[:, each + 1].ravel()])


def _reordered(source: Tensor, order: Array) -> Tensor:
    return replace(source, read=partial(_read_reordered, source, order), granule=source.rows, stored=None)


def _read_reordered(source: Tensor, order: Array, start: int, stop: int) -> Array:
    return np.ascontiguousarray(source.read(0, source.rows)[order[start:stop]])
