"""A model whose weights are in memory only while the module they belong to computes.

torch's hooks do it: before a module's forward its own parameters are read from the checkpoint and widened to
float32, after it they are gone. So a pass takes the memory of the largest module and of the activations,
whatever the model's size, and no code per architecture.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.tensor import Tensor
from ..quant.ggml import to_float32
from .products import multiply_quickly
from .stand_ins import rests

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_SLAB = 1 << 20  # weights a thread reads and widens at a time: some megabytes, which the cache holds
_LARGE = 1 << 18  # weights worth reading ahead
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
    """Reads lazy tensors as float32 with several threads, into memory that is used again and again."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kconv-weights")
        self._free: list[torch.Tensor] = []

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
        """Give the memory that is free back to the system.

        glibc keeps what its threads have freed, some 100 MB here, for threads that will not ask again.
        """
        self._free.clear()
        if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
            trim(0)

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


class StreamedModules:
    """Modules that read their own parameters, which are empty, when they run.

    While one computes, the next large one is read: the first that has not run yet, in the order they were
    added. Where the model runs them in another order, that one waits for its turn. A module that rests needs
    no weights.
    """

    def __init__(self, reader: WeightReader, done: Callable[[], None]) -> None:
        """``done`` is called whenever a module has run."""
        self._reader = reader
        self._done = done
        self._wanted: list[list[RowRange]] = []
        self._numbers: dict[torch.nn.Module, int] = {}
        self._ahead: dict[int, Lease] = {}
        self._left: dict[int, None] = {}
        self._holding = self._quiet = False
        self._held: list[Callable[[], None]] = []

    def __len__(self) -> int:
        """How many there are."""
        return len(self._wanted)

    def add(self, module: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
        """``weights`` holds each parameter under its name in the module and in its shape.

        The module's output must not be a view of a weight, whose memory is used again.
        """
        import torch

        multiply_quickly(module)
        number, empty = len(self._wanted), dict(module._parameters)
        self._numbers[module] = number
        leases: list[Lease] = []
        self._wanted.append([RowRange(tensor, 0, tensor.rows) for tensor in weights.values()])

        def fill(module: torch.nn.Module, args: Any) -> None:
            if leases or rests(module):
                return
            if self._holding:
                self._held.append(partial(let_go, module))
            lease = self._take(number)
            leases.append(lease)
            for key, value in zip(weights, lease.tensors, strict=True):
                module._parameters[key] = torch.nn.Parameter(value, requires_grad=False)

        def let_go(module: torch.nn.Module) -> None:
            module._parameters.update(empty)
            while leases:
                self._reader.release(leases.pop())

        def drop(module: torch.nn.Module, args: Any, output: Any) -> None:
            if rests(module):
                return
            if not self._holding:
                let_go(module)
            if not self._quiet:
                self._done()

        module.register_forward_pre_hook(fill)
        module.register_forward_hook(drop, always_call=True)

    def start(self) -> None:
        """All modules will run anew."""
        self._ahead.clear()
        self._left = {
            number: None
            for number, wanted in enumerate(self._wanted)
            if sum(rows.elements for rows in wanted) >= _LARGE
        }

    def skip(self, modules: Sequence[torch.nn.Module]) -> None:
        """Count what is within these modules as having run: they will not, and nothing is read ahead."""
        for each in (each for module in modules for each in module.modules()):
            if each in self._numbers:
                self._left.pop(self._numbers[each], None)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the weights of modules that run meanwhile until the end, for those that run again."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
            while self._held:
                self._held.pop()()

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Do not count what runs meanwhile."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _take(self, number: int) -> Lease:
        """The weights of a module that runs now; begins to read the next ones."""
        lease = self._ahead.pop(number, None) or self._reader.begin(self._wanted[number])
        self._left.pop(number, None)
        if not self._ahead and self._left:
            following = next(iter(self._left))
            self._ahead[following] = self._reader.begin(self._wanted[following])
        return lease.wait()


def stream_embedding(embedding: torch.nn.Embedding, table: Tensor, reader: WeightReader) -> None:
    """Let an embedding read the rows of ``table`` (vocabulary, hidden) it needs and no others.

    The module computes as ever, on a small table of the rows needed and with tokens renumbered to match.
    """
    import torch

    empty = embedding._parameters["weight"]
    embedding.padding_idx = None  # matters in training only, and would be looked for in the small table

    def fill(module: torch.nn.Module, args: Any) -> Any:
        if rests(module):
            return None
        needed, renumbered = torch.unique(args[0], return_inverse=True)
        lease = reader.read([RowRange(table, first, last) for first, last in _runs(needed.tolist())])
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
