"""A model whose weights are in memory only while the module they belong to computes.

torch's hooks do it: before a module's forward its own parameters are read from the checkpoint and widened to
float32, after it they are gone. So a pass takes the memory of the largest module and of the activations,
whatever the model's size, and no code per architecture.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.tensor import Tensor
from .heap import give_pieces_back
from .products import linear, multiply_quickly
from .stand_ins import rests
from .weight_reader import Lease, RowRange, WeightReader

if TYPE_CHECKING:
    import torch

_LARGE = 1 << 18  # weights worth reading ahead
WHOLE = "kconv_whole"
"""Set on a module, it has its weights in memory when it runs, whatever it multiplies."""


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
        self._linear: dict[int, tuple[torch.nn.Linear, Callable[..., torch.Tensor]]] = {}
        self._multiplying = False
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
        if type(module) is torch.nn.Linear and weights["weight"].elements >= _LARGE:
            self._linear[number] = module, partial(self._multiply, module, weights)

        def fill(module: torch.nn.Module, args: Any) -> None:
            if leases or rests(module) or self._needs_none(number, args):
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

    def _needs_none(self, number: int, args: Any) -> bool:
        """Whether a module multiplies while its matrix is read, so that it need not be in memory."""
        if self._holding or number not in self._linear or not args:
            return False
        module, _ = self._linear[number]
        self._multiplying = not module.__dict__.get(WHOLE) and self._reader.multiplies(args[0])
        if self._multiplying and number not in self._ahead:
            self._left.pop(number, None)
            return True
        return False

    def _multiply(
        self, module: torch.nn.Linear, weights: Mapping[str, Tensor], input: torch.Tensor
    ) -> torch.Tensor:
        """A Linear's forward, whether or not its weights are in memory."""
        if not module.weight.is_meta:
            return linear(input, module.weight, module.bias)
        bias = [RowRange(weights[key], 0, weights[key].rows) for key in weights if key == "bias"]
        with self._reader.reading(bias) as read:
            return self._reader.product(input, weights["weight"], *read)

    def start(self) -> None:
        """All modules will run anew."""
        self._ahead.clear()
        self._multiplying = self._reader.any_order
        for module, forward in self._linear.values() if self._reader.any_order else ():
            module.forward = forward  # type: ignore[method-assign]
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
            give_pieces_back()

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
        left = (each for each in self._left if not (self._multiplying and each in self._linear))
        following = None if self._ahead else next(left, None)
        if following is not None:
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
