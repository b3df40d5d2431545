"""How a class of transformers lays out the matrices of its experts, and what it computes between them.

Most have gate above up in ``(experts, 2 * inner, hidden)``; gpt-oss has them turned, in turns and with
biases. The classes say so themselves (transformers' ``use_experts_implementation``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def upright(module: Any, matrix: torch.Tensor) -> torch.Tensor:
    """A matrix of an expert as ``(out, in)``."""
    return matrix.T if getattr(module, "is_transposed", False) else matrix


def halves(module: Any, fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Gate and up of an upright matrix or a bias."""
    if getattr(module, "is_concatenated", True):
        gate, up = fused.chunk(2)
        return gate, up
    return fused[::2], fused[1::2]


def bias_of(module: Any, matrix: str, expert: int) -> torch.Tensor | None:
    """The bias of ``gate_up_proj`` or ``down_proj``, where the class has one."""
    biases = getattr(module, f"{matrix}_bias", None) if getattr(module, "has_bias", False) else None
    return None if biases is None else biases[expert]


def gated(module: Any, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """What the class makes of both, biases included, ``(tokens, inner)``."""
    import torch

    if not hasattr(module, "_apply_gate"):
        made: torch.Tensor = module.act_fn(gate) * up
        return made
    if getattr(module, "is_concatenated", True):
        fused = torch.cat((gate, up), -1)
    else:
        fused = torch.stack((gate, up), -1).flatten(-2)
    made = module._apply_gate(fused)
    return made
