"""A model whose weights are in memory only while the module they belong to computes.

torch's hooks do it: before a module's forward its own parameters are read from the checkpoint and widened to
float32, after it they are gone. So a pass takes the memory of the largest module and of the activations,
whatever the model's size, and no code per architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.tensor import Tensor
from ..quant.ggml import to_float32

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_SLAB = 1 << 20  # weights a thread reads and widens at a time: some megabytes, which the cache holds
_ALIGNMENT = 16  # floats: a cache line, where torch's own weights begin, too


@dataclass(frozen=True)
class Rows:
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
    """Weights in memory, as float32 tensors of the shapes asked for, until they are given back."""

    tensors: tuple[torch.Tensor, ...]
    room: torch.Tensor


class WeightReader:
    """Reads lazy tensors as float32 with several threads, into memory that is used again and again."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kconv-weights")
        self._free: list[torch.Tensor] = []

    def read(self, wanted: Sequence[Rows]) -> Lease:
        """Each of ``wanted`` as a tensor of ``(stop - start, *shape[1:])``."""
        places = [0]
        for rows in wanted:
            places.append(places[-1] + -(-rows.elements // _ALIGNMENT) * _ALIGNMENT)
        room = self._room(places[-1])
        made, jobs = [], []
        for rows, place in zip(wanted, places, strict=False):
            flat = room[place : place + rows.elements]
            made.append(flat.view(rows.stop - rows.start, *rows.tensor.shape[1:]))
            jobs += [self._pool.submit(job) for job in _slabs(rows, flat.numpy())]
        for job in jobs:
            job.result()
        return Lease(tuple(made), room)

    def release(self, lease: Lease) -> None:
        """Take the memory back; whoever reads next writes over it."""
        self._free.append(lease.room)

    def _room(self, count: int) -> torch.Tensor:
        import torch

        room = self._free.pop() if self._free else torch.empty(0)
        return room if room.numel() >= count else torch.empty(count)


def _slabs(rows: Rows, out: Floats) -> Iterator[Callable[[], None]]:
    tensor = rows.tensor
    width = tensor.row_elements
    step = max(1, _SLAB // max(1, width) // tensor.granule) * tensor.granule
    for start in range(rows.start, rows.stop, step):
        stop = min(start + step, rows.stop)
        place = out[(start - rows.start) * width : (stop - rows.start) * width]
        yield partial(_widen, tensor, start, stop, place)


def _widen(tensor: Tensor, start: int, stop: int, out: Floats) -> None:
    to_float32(tensor.read(start, stop), tensor.dtype, out)


def stream_module(
    module: torch.nn.Module, weights: Mapping[str, Tensor], reader: WeightReader, done: Callable[[], None]
) -> None:
    """Let a module read its own parameters, which are empty, when it runs.

    ``weights`` holds each under its name in the module and in its shape. ``done`` is called when the module
    has run. Its output must not be a view of a weight, whose memory is used again.
    """
    import torch

    empty = dict(module._parameters)
    leases: list[Lease] = []

    def fill(module: torch.nn.Module, args: Any) -> None:
        lease = reader.read([Rows(tensor, 0, tensor.rows) for tensor in weights.values()])
        leases.append(lease)
        for key, value in zip(weights, lease.tensors, strict=True):
            module._parameters[key] = torch.nn.Parameter(value, requires_grad=False)

    def drop(module: torch.nn.Module, args: Any, output: Any) -> None:
        module._parameters.update(empty)
        while leases:
            reader.release(leases.pop())
        done()

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop, always_call=True)


def stream_embedding(embedding: torch.nn.Embedding, table: Tensor, reader: WeightReader) -> None:
    """Let an embedding read the rows of ``table`` (vocabulary, hidden) it needs and no others.

    The module computes as ever, on a small table of the rows needed and with tokens renumbered to match.
    """
    import torch

    empty = embedding._parameters["weight"]
    embedding.padding_idx = None  # matters in training only, and would be looked for in the small table

    def fill(module: torch.nn.Module, args: Any) -> Any:
        needed, renumbered = torch.unique(args[0], return_inverse=True)
        lease = reader.read([Rows(table, first, last) for first, last in _runs(needed.tolist())])
        rows = torch.cat(lease.tensors)
        reader.release(lease)
        module._parameters["weight"] = torch.nn.Parameter(rows, requires_grad=False)
        return (renumbered, *args[1:])

    def drop(module: torch.nn.Module, args: Any, output: Any) -> None:
        module._parameters["weight"] = empty

    embedding.register_forward_pre_hook(fill)
    embedding.register_forward_hook(drop, always_call=True)


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as ranges of neighbours: 3, 4, 9 are 3 to 5 and 9 to 10."""
    start = previous = numbers[0]
    for number in numbers[1:]:
        if number != previous + 1:
            yield start, previous + 1
            start = number
        previous = number
    yield start, previous + 1
