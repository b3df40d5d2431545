"""llama.cpp's GELU in the fp32 reference, to see how much of a difference comes from nothing else.

ggml computes the tanh form of GELU through a table: the argument is rounded to a half float, and so is the
result (ggml-cpu/vec.h, ggml_vec_gelu_f32 and ggml_vec_geglu_f32); from 10 on the argument is the result, up
to -10 the result is zero.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

TANH_FORMS = frozenset({"NewGELUActivation", "GELUTanh", "FastGELUActivation", "AccurateGELUActivation"})
GELUS = TANH_FORMS | {"GELUActivation", "GELU"}
"""Every GELU llama.cpp computes through the table, the one of the error function among them."""
_ENDS = 10.0


def take_llama_cpps_gelu(model: Any, *, exact: bool = False) -> int:
    """Let every tanh GELU go through the table, with ``exact`` every other one, too; how many there are."""
    forms = GELUS if exact else TANH_FORMS
    modules = [module for module in model.modules() if type(module).__name__ in forms]
    for module in modules:
        module.forward = through_table
    return len(modules)


def through_table(values: torch.Tensor) -> torch.Tensor:
    """GELU of each value as ggml has it in its table."""
    import torch

    inside = values.clamp(-_ENDS, _ENDS).half().float()
    rounded = torch.nn.functional.gelu(inside, approximate="tanh").half().float()
    rounded = torch.where(values >= _ENDS, values, rounded)
    return torch.where(values <= -_ENDS, torch.zeros_like(values), rounded)
