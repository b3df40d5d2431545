"""Weights read from lazy tensors as float32, with several threads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..core.tensor import Tensor
from ..quant.ggml import to_float32
from . import few_positions
from .heap import give_freed_memory_back

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_SLAB = 1 << 20  # weights a thread reads and widens at a time: some megabytes, which the cache holds
_ALIGNMENT = 16  # floats: a cache line, where torch's own weights begin, too


@dataclass(frozen=True)
class RowRange:
    """Rows ``start`` to ``stop`` of a tensor."""

    tensor: Tensor
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """How many weights that is."""
        return (self.stop - self.start) * self.tensor.row_elements


@dataclass(frozen=True)
class Lease:
    """Weights in memory, as float32 tensors of the shapes asked for, until they are given back.

    They are there once ``wait`` has returned, which raises what went wrong in reading them.
    """

    tensors: tuple[torch.Tensor, ...]
    room: torch.Tensor
    jobs: Sequence[Future[None]]

    def wait(self) -> Lease:
        """Until the weights are there."""
        for job in self.jobs:
            job.result()
        return self


class WeightReader:
    """Reads lazy tensors as float32 with several threads, into memory that is used again and again.

    ``any_order``: products need not be the sums of torch to the last bit, so that those with few positions
    may be made while the matrix is read (few_positions.py).
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kconv-weights")
        self._free: list[torch.Tensor] = []
        self.any_order = False

    def multiplies(self, values: torch.Tensor) -> bool:
        """Whether ``product`` takes these inputs, float32 ``(…, columns)``."""
        return self.any_order and few_positions.fits(values)

    def product(self, values: torch.Tensor, matrix: Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``torch.nn.functional.linear`` with a matrix that is read meanwhile."""
        return few_positions.multiply(self._pool, values, matrix, bias)

    def begin(self, wanted: Sequence[RowRange]) -> Lease:
        """Begin to read each of ``wanted`` into a tensor of ``(stop - start, *shape[1:])``."""
        places = [0]
        for rows in wanted:
            places.append(places[-1] + -(-rows.elements // _ALIGNMENT) * _ALIGNMENT)
        room = self._room(places[-1])
        made: list[torch.Tensor] = []
        jobs: list[Future[None]] = []
        for rows, place in zip(wanted, places, strict=False):
            flat = room[place : place + rows.elements]
            made.append(flat.view(rows.stop - rows.start, *rows.tensor.shape[1:]))
            jobs += [self._pool.submit(job) for job in _slabs(rows, flat.numpy())]
        return Lease(tuple(made), room, jobs)

    def read(self, wanted: Sequence[RowRange]) -> Lease:
        """The same, and wait for it."""
        return self.begin(wanted).wait()

    @contextlib.contextmanager
    def reading(self, wanted: Sequence[RowRange]) -> Iterator[tuple[torch.Tensor, ...]]:
        """The same, in memory meanwhile."""
        lease = self.read(wanted)
        try:
            yield lease.tensors
        finally:
            self.release(lease)

    def release(self, lease: Lease) -> None:
        """Take the memory back; whoever reads next writes over it."""
        self._free.append(lease.room)

    def forget(self) -> None:
        """Give the memory that is free back to the system."""
        self._free.clear()
        give_freed_memory_back()

    def close(self) -> None:
        """End the threads and give the memory back.

        A model and its reader refer to each other, and would stay until such cycles are searched for.
        """
        self._pool.shutdown()
        self.forget()

    def _room(self, count: int) -> torch.Tensor:
        import torch

        sizes = [room.numel() for room in self._free]
        if fitting := [size for size in sizes if size >= count]:
            return self._free.pop(sizes.index(min(fitting)))
        if sizes:
            del self._free[sizes.index(max(sizes))]  # a larger one takes its place
        return torch.empty(count)


def _slabs(rows: RowRange, out: Floats) -> Iterator[Callable[[], None]]:
    tensor = rows.tensor
    width = tensor.row_elements
    step = max(1, _SLAB // max(1, width) // tensor.granule) * tensor.granule
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        place = out[(start - rows.start) * width : (stop - rows.start) * width]
        yield partial(_widen, tensor, start, stop, place)


def _widen(tensor: Tensor, start: int, stop: int, out: Floats) -> None:
    to_float32(tensor.read(start, stop), tensor.dtype, out)
