"""A model whose matrices get their inputs as llama.cpp rounds them on a CPU, to say what that costs.

What q4_1 and q5_1 lose by keeping a block's sum as a half is left out; so are experts and attention.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from .ggml_rounding import Rounding, rounded, rounding_of

Floats = npt.NDArray[np.float32]


@contextlib.contextmanager
def rounding_inputs(model: Any, formats: Mapping[str, str]) -> Iterator[None]:
    """Round what enters the modules of those names as it is for matrices of these formats."""
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            by = rounding_of(formats.get(name, ""))
            if by is not None:
                stack.callback(module.register_forward_pre_hook(partial(_round, by)).remove)
        yield


def _round(by: Rounding, module: Any, entering: tuple[Any, ...]) -> tuple[Any, ...] | None:
    if not entering or not entering[0].is_floating_point():  # an embedding is looked up
        return None
    return (rounded(entering[0], by)[0], *entering[1:])


def rounded_for(format: str, values: Floats) -> Floats:
    """What enters a matrix of that format, ``(…, columns)``, as it is rounded for it."""
    import torch

    by = rounding_of(format)
    if by is None:
        return values
    found: Floats = rounded(torch.from_numpy(values), by)[0].numpy()
    return found
