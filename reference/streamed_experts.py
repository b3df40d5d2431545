"""Layers of experts too large to be in memory whole: each expert's matrices are read when it computes.

transformers 5 stacks the matrices of all experts of a layer; a Mixtral 8x7B's take 5 GiB in fp32. Its own
plain forward takes one expert after the other, and finds here something to index in place of the stack. The
fused kernel that it uses otherwise sums in another order, so logits differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.tensor import Tensor
from .watching import is_experts
from .weight_reader import Lease, RowRange, WeightReader

if TYPE_CHECKING:
    import torch

LARGE = 1 << 28  # weights of a layer's experts: 1 GiB


class OneByOne:
    """In place of a parameter ``(experts, rows, columns)``; a matrix is valid until the next is asked for."""

    ndim = 3

    def __init__(self, stack: Tensor, reader: WeightReader) -> None:
        self._stack, self._reader = stack, reader
        self._lease: Lease | None = None
        self._number = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the stack."""
        return self._stack.shape

    def __getitem__(self, expert: Any) -> torch.Tensor:
        """The matrix of an expert, ``(rows, columns)``."""
        self.release()
        self._number = int(expert)
        self._lease = self._reader.read([RowRange(self._stack, self._number, self._number + 1)])
        return self._lease.tensors[0][0]

    def expert_of(self, matrix: torch.Tensor) -> int | None:
        """Whose matrix it is; None for any but the last one asked for."""
        last = None if self._lease is None else self._lease.tensors[0]
        return None if last is None or matrix.data_ptr() != last.data_ptr() else self._number

    def release(self) -> None:
        """Give back the memory of the last matrix."""
        if self._lease is not None:
            self._reader.release(self._lease)
            self._lease = None


def stream_experts(module: Any, weights: Mapping[str, Tensor], reader: WeightReader) -> Mapping[str, Tensor]:
    """Let a module read its stacks an expert at a time, if it is one of large experts.

    What is left of ``weights`` (its parameters by name) is to be read whole.
    """
    stacks = {key: tensor for key, tensor in weights.items() if len(tensor.shape) == 3}
    large = sum(tensor.elements for tensor in stacks.values()) >= LARGE
    if not large or not is_experts(module) or not hasattr(module, "config"):
        return weights
    module.config._experts_implementation = "eager"
    places = {key: OneByOne(tensor, reader) for key, tensor in stacks.items()}
    for key, place in places.items():
        del module._parameters[key]
        module.__dict__[key] = place

    def drop(module: Any, args: Any, output: Any) -> None:
        for place in places.values():
            place.release()

    module.register_forward_hook(drop, always_call=True)
    return {key: tensor for key, tensor in weights.items() if key not in stacks}
