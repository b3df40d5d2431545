"""A layer of experts computed again, expert by expert, with what llama.cpp chose and multiplied."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .copies import COPIES, WEIGHTS_ONLY, Matrix, MatrixInput
from .expert_layout import bias_of, gated, halves, upright
from .ggml_rounding import rounded
from .weight_reader import RowRange, WeightReader

if TYPE_CHECKING:
    import torch

    from .weight_reader import Floats

Synchronize = Callable[[str, "torch.Tensor"], "torch.Tensor"]


class Experts:
    """Stands in for the ``forward`` of transformers' fused experts (gate_up_proj, down_proj) meanwhile.

    ``matrices`` are those of gate, up and down; ``synchronize`` and ``add`` are the run's, ``reader`` reads
    weights. ``copies`` are those of the window.
    """

    def __init__(
        self,
        module: Any,
        matrices: Sequence[Matrix],
        inputs: Mapping[str, MatrixInput],
        synchronize: Synchronize,
        add: Callable[[str, Floats, Floats], None],
        reader: WeightReader,
        copies: int = COPIES,
    ) -> None:
        self._module = module
        self._gate, self._up, self._down = matrices
        self._copies = copies
        self._inputs, self._synchronize, self._add, self._reader = inputs, synchronize, add, reader

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the experts make of ``(copies * positions, hidden)``; ``chosen`` and ``weights`` as there."""
        import torch

        values = self._synchronize(self._gate.name, hidden.reshape(self._copies, -1, hidden.shape[-1]))
        flat = values.reshape(hidden.shape)
        count = values.shape[1]
        given = self._inputs.get(self._down.name)
        slots = None if given is None else given.experts
        if given is None or slots is None:
            self._synchronize(self._down.name, values)  # which notes that llama.cpp does not use it
        else:
            chosen = _exchanged(chosen, slots)
        theirs: list[Floats] = []
        expected: list[Floats] = []
        total = torch.zeros_like(hidden)
        for expert in torch.unique(chosen).tolist():
            tokens, places = torch.where(chosen == expert)
            free = (tokens >= count * WEIGHTS_ONLY) & (tokens < count * (WEIGHTS_ONLY + 1))
            inner = self._inner(flat[tokens], free, expert)
            for at, token in enumerate(tokens.tolist()):
                if given is None or slots is None or token >= count:
                    continue
                for slot in np.flatnonzero(slots[token] == expert):
                    theirs.append(given.values[token, slot])
                    expected.append(inner[at].numpy().copy())
                    inner[at] = torch.from_numpy(given.values[token, slot])
            with self._minimums(self._down, expert) as least:
                down = upright(self._module, self._module.down_proj[expert])
                least = None if least is None else upright(self._module, least)
                made = self._product(inner, free, down, self._down.rounding, least)
            bias = bias_of(self._module, "down_proj", expert)
            made = made if bias is None else made + bias
            total.index_add_(0, tokens, made * weights[tokens, places, None])
        if theirs:
            self._add(self._down.name, np.array(theirs), np.array(expected))
        return total

    def _inner(self, values: torch.Tensor, free: torch.Tensor, expert: int) -> torch.Tensor:
        """What an expert makes of its inputs before the last matrix."""
        module = self._module
        gate, up = halves(module, upright(module, module.gate_up_proj[expert]))
        with self._minimums(self._gate, expert) as least:
            parts = (None, None) if least is None else halves(module, upright(module, least))
            one = self._product(values, free, gate, self._gate.rounding, parts[0])
            other = self._product(values, free, up, self._up.rounding, parts[1])
        bias = bias_of(module, "gate_up_proj", expert)
        if bias is not None:
            first, second = halves(module, bias)
            one, other = one + first, other + second
        return gated(module, one, other)

    @contextlib.contextmanager
    def _minimums(self, matrix: Matrix, expert: int) -> Any:
        if matrix.minimums is None:
            yield None
            return
        with self._reader.reading([RowRange(matrix.minimums, expert, expert + 1)]) as (rows,):
            yield rows[0]

    def _product(
        self, values: torch.Tensor, free: torch.Tensor, weight: torch.Tensor, rounding: Any, minimums: Any
    ) -> torch.Tensor:
        """``(tokens, columns)`` through a matrix, rounded but for the tokens of the copy that is not."""
        import torch

        made, missing = rounded(values, rounding)
        output = torch.nn.functional.linear(torch.where(free[:, None], values, made), weight)
        if missing is None or minimums is None:
            return output
        missing = torch.where(free[:, None], torch.zeros_like(missing), missing)
        return output + torch.nn.functional.linear(missing, minimums)


def _exchanged(chosen: torch.Tensor, theirs: Any) -> torch.Tensor:
    """The experts chosen, in the first positions as llama.cpp chose them.

    Of two experts as good as equal either may be chosen; their weights are equal then, too. Where llama.cpp
    chose others for no such reason, its weights are others, which shows behind this layer.
    """
    import torch

    made = chosen.clone()
    for position, other in enumerate(theirs):
        own = chosen[position].tolist()
        missing = [expert for expert in other.tolist() if expert not in own]
        for place, expert in enumerate(own if missing else ()):
            if expert not in other and missing:
                made[position, place] = missing.pop(0)
    return made if not torch.equal(made, chosen) else chosen
