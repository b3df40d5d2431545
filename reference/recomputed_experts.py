"""A layer of experts computed again, expert by expert, with what llama.cpp chose and multiplied."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .copies import COPIES, WEIGHTS_ONLY, Matrix, MatrixInput
from .ggml_rounding import rounded
from .streamed import RowRange, WeightReader

if TYPE_CHECKING:
    import torch

    from .streamed import Floats

Synchronize = Callable[[str, "torch.Tensor"], "torch.Tensor"]


class Experts:
    """Stands in for the ``forward`` of transformers' fused experts (gate_up_proj, down_proj) meanwhile.

    ``matrices`` are those of gate, up and down; ``synchronize`` and ``add`` are the run's, ``reader`` reads
    weights.
    """

    def __init__(
        self,
        module: Any,
        matrices: Sequence[Matrix],
        inputs: Mapping[str, MatrixInput],
        synchronize: Synchronize,
        add: Callable[[str, Floats, Floats], None],
        reader: WeightReader,
    ) -> None:
        self._module = module
        self._gate, self._up, self._down = matrices
        self._inputs, self._synchronize, self._add, self._reader = inputs, synchronize, add, reader

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What the experts make of ``(copies * positions, hidden)``; ``chosen`` and ``weights`` as there."""
        import torch

        values = self._synchronize(self._gate.name, hidden.reshape(COPIES, -1, hidden.shape[-1]))
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
            gate, up = self._module.gate_up_proj[expert].chunk(2)
            with self._minimums(self._gate, expert) as least:
                halves = (None, None) if least is None else least.chunk(2)
                gated = self._product(flat[tokens], free, gate, self._gate.rounding, halves[0])
                inner = self._product(flat[tokens], free, up, self._up.rounding, halves[1])
            inner = self._module.act_fn(gated) * inner
            for at, token in enumerate(tokens.tolist()):
                if given is None or slots is None or token >= count:
                    continue
                for slot in np.flatnonzero(slots[token] == expert):
                    theirs.append(given.values[token, slot])
                    expected.append(inner[at].numpy().copy())
                    inner[at] = torch.from_numpy(given.values[token, slot])
            with self._minimums(self._down, expert) as least:
                made = self._product(inner, free, self._module.down_proj[expert], self._down.rounding, least)
            total.index_add_(0, tokens, made * weights[tokens, places, None])
        if theirs:
            self._add(self._down.name, np.array(theirs), np.array(expected))
        return total

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
