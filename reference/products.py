"""Products with matrices of weights, by that library in torch which is fast on this processor.

torch leaves them to Intel's MKL, which runs its code for AVX2 on AMD's processors. oneDNN, in torch as well,
makes them for the instructions that are there: on a Zen 4, 1.15 to 1.2 times as fast for 2,048 rows, 1.4
times for 288. Either gives a row the same bits however many others it stands among, from eight rows on, and
however many threads there are. What is in use depends on the processor alone, so the bits of a pass do, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.machine import processor

if TYPE_CHECKING:
    import torch

_ALLOWED = 1e-5  # of the largest number, between the two libraries


def linear(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``values`` ``(…, n)`` times ``weight`` ``(m, n)`` transposed, plus ``bias`` ``(m,)``; all float32."""
    import torch

    quicker = _onednn()
    if quicker is None or values.dtype != torch.float32 or weight.dtype != torch.float32:
        return torch.nn.functional.linear(values, weight, bias)
    return quicker(values, weight, bias)


def multiply_quickly(module: torch.nn.Module) -> None:
    """Let a module that is a plain linear one compute with ``linear``."""
    import torch

    if type(module) is torch.nn.Linear and _onednn() is not None:
        module.forward = partial(_forward, module)  # type: ignore[method-assign]


def _forward(module: Any, input: torch.Tensor) -> torch.Tensor:
    return linear(input, module.weight, module.bias)


@functools.cache
def _onednn() -> Callable[..., torch.Tensor] | None:
    """OneDNN's product where it is the quicker one and does what torch's does.

    torch has no public name for it, so it is tried before it is used.
    """
    import torch

    if not processor().amd or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return None

    def product(values: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(values, weight, bias, "none", [], "")
        return found

    with torch.inference_mode():
        values = torch.linspace(-1, 1, 3 * 40).sin().view(1, 3, 40)
        weight, bias = torch.linspace(-9, 9, 24 * 40).cos().view(24, 40), torch.linspace(0, 1, 24)
        try:
            found = [product(values, weight, None) + bias, product(values, weight, bias)]
        except (AttributeError, RuntimeError, TypeError, ValueError):
            return None
        expected = torch.nn.functional.linear(values, weight, bias)
        limit = _ALLOWED * float(expected.abs().max())
        alike = all(
            one.shape == expected.shape and bool(((one - expected).abs() <= limit).all()) for one in found
        )
    return product if alike else None
