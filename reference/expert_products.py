"""What flows into and out of the matrices of fused experts, while transformers multiplies them.

The experts' forward computes in one of several ways (``grouped_mm`` all experts in one call, ``eager`` one by
one); their products are observed, none is computed again. Where transformers multiplies in a way that is not
known here, the inputs are computed once more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .stand_ins import rests
from .streamed_experts import OneByOne
from .watching import into_experts

if TYPE_CHECKING:
    import torch

Note = Callable[[str, bool, int, int, float], None]
"""Called with ``3.down_proj``, whether it flows out, the row of the batch, the position, and a magnitude."""


@contextlib.contextmanager
def observed_products(module: Any, lengths: Sequence[int], note: Note) -> Iterator[None]:
    """Tell each expert's largest magnitudes; ``lengths`` are each row's positions without the padding."""
    before = module.__dict__.get("forward")
    compute = module.forward

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> Any:
        if rests(module):
            return compute(hidden, chosen, weights)
        products = _products(module, chosen, lengths, note)
        with products:
            made = compute(hidden, chosen, weights)
        if not products.seen:
            _inputs_again(module, hidden, chosen, lengths, note)
        return made

    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _products(module: Any, chosen: torch.Tensor, lengths: Sequence[int], note: Note) -> Any:
    """A mode in which torch shows each product of the experts; ``seen`` counts them."""
    import torch
    from torch.overrides import TorchFunctionMode

    each = len(chosen) // len(lengths)
    grouped = {getattr(torch.nn.functional, "grouped_mm", None), getattr(torch, "_grouped_mm", None)}

    class Products(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if func is torch.nn.functional.linear:
                self._alone(args[0], args[1], made)
            elif func in grouped:
                self._together(args[0], args[1], made)
            return made

        def _alone(self, entering: Any, weight: Any, made: Any) -> None:
            for stack, names in _matrices(module):
                expert = _expert_of(stack, weight)
                if expert is None:
                    continue
                tokens = torch.where((chosen == expert).T)[1]
                self._tell(torch.full_like(tokens, expert), tokens, names, entering, made)

        def _together(self, entering: Any, weight: Any, made: Any) -> None:
            for stack, names in _matrices(module):
                if not isinstance(stack, OneByOne) and weight.data_ptr() == stack.data_ptr():
                    experts, order = torch.sort(chosen.reshape(-1))
                    self._tell(experts, order // chosen.shape[-1], names, entering, made)

        def _tell(self, experts: Any, tokens: Any, names: Sequence[str], entering: Any, made: Any) -> None:
            self.seen += 1
            with torch._C.DisableTorchFunction():
                flows = [(False, name, entering) for name in names]
                flows += [(True, name, part) for name, part in zip(names, _parts(made, names), strict=True)]
                for out, name, values in flows:
                    _tell_largest(experts, tokens, values, each, lengths, name, out, note)

    return Products()


def _expert_of(stack: Any, weight: Any) -> int | None:
    """Whose matrix of the stack ``weight`` is, None for another matrix."""
    if isinstance(stack, OneByOne):
        return stack.expert_of(weight)
    size = stack.stride(0) * stack.element_size()
    expert, rest = divmod(weight.data_ptr() - stack.data_ptr(), size)
    return None if rest or not 0 <= expert < len(stack) or weight.shape != stack.shape[1:] else expert


def _matrices(module: Any) -> tuple[tuple[Any, tuple[str, ...]], ...]:
    return (module.gate_up_proj, ("gate_proj", "up_proj")), (module.down_proj, ("down_proj",))


def _parts(made: torch.Tensor, names: Sequence[str]) -> Sequence[torch.Tensor]:
    return made.chunk(len(names), dim=-1)


def _tell_largest(
    experts: torch.Tensor,
    tokens: torch.Tensor,
    values: torch.Tensor,
    each: int,
    lengths: Sequence[int],
    name: str,
    out: bool,
    note: Note,
) -> None:
    """The largest magnitude for each expert and row of the batch; ``values`` are ``(tokens, columns)``."""
    import torch

    rows, positions = tokens // each, tokens % each
    inside = positions < torch.tensor(lengths)[rows]
    largest = torch.maximum(values.amax(-1), -values.amin(-1))
    for expert in torch.unique(experts[inside]).tolist():
        at = (inside & (experts == expert)).nonzero()[:, 0]
        first = at[int(largest[at].nan_to_num(nan=torch.inf).argmax())]
        note(f"{expert}.{name}", out, int(rows[first]), int(positions[first]), float(largest[first]))


def _inputs_again(
    module: Any, hidden: torch.Tensor, chosen: torch.Tensor, lengths: Sequence[int], note: Note
) -> None:
    import numpy as np

    for row, name, values in into_experts("", module, (hidden, chosen), lengths):
        largest = np.abs(values).max(axis=-1)
        at = int(np.nan_to_num(largest, nan=np.inf).argmax())
        note(name.lstrip("."), False, row, at, float(largest[at]))
