"""Products of a file's matrices with few positions, some rows at a time while the cache holds them.

A matrix widened whole goes through memory three times: it is written, read, and packed by the library that
multiplies. Of the few positions a quick proof computes again that takes longer than the arithmetic. Here each
thread widens some rows, multiplies them by all positions with kconv's own kernel, which packs nothing, and
takes the next ones. Sums are float32 in an order of their own, no worse than torch's; where the bits should
be transformers' own (the checkpoint's logits) torch multiplies.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future, wait
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..core.tensor import DType, Tensor
from ..quant import few_positions
from ..quant.ggml import widened

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

_MOST = 64  # positions, beyond which packing no longer matters
_SLAB = 1 << 20  # weights a thread widens and multiplies at a time; of fewer Python's share would show


def fits(values: torch.Tensor) -> bool:
    """Whether inputs ``(…, columns)`` are of so few positions, and can be multiplied here."""
    import torch

    positions = values.numel() // max(1, values.shape[-1])
    return values.dtype is torch.float32 and 0 < positions <= _MOST and few_positions.available()


def multiply(
    pool: Executor, values: torch.Tensor, matrix: Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """``torch.nn.functional.linear`` of ``values`` that fit with a matrix ``(rows, columns)`` not read yet.

    Raises what reading raises.
    """
    import torch

    flat = values.reshape(-1, values.shape[-1]).numpy()
    width = -(-len(flat) // few_positions.WIDTH) * few_positions.WIDTH
    vectors = np.zeros((flat.shape[1], width), np.float32)
    vectors[:, : len(flat)] = flat.T
    out = np.empty((matrix.rows, width), np.float32)
    slab = max(1, _SLAB // matrix.row_elements // matrix.granule) * matrix.granule
    jobs = [
        pool.submit(partial(_multiply, vectors, matrix, out, row, min(row + slab, matrix.rows)))
        for row in range(0, matrix.rows, slab)
    ]
    _finish(jobs)
    made = torch.from_numpy(np.ascontiguousarray(out[:, : len(flat)].T))
    made = made if bias is None else made + bias
    return made.reshape(*values.shape[:-1], matrix.rows)


def _multiply(vectors: Floats, matrix: Tensor, out: Floats, start: int, stop: int) -> None:
    rows = matrix.read(start, stop)
    weights = np.ascontiguousarray(rows) if matrix.dtype is DType.F32 else widened(rows, matrix.dtype)
    few_positions.multiply(vectors, weights.reshape(stop - start, -1), out[start:stop])


def _finish(jobs: list[Future[Any]]) -> None:
    """Wait for all; where one fails the rest is not begun."""
    try:
        for job in jobs:
            job.result()
    except BaseException:
        for job in jobs:
            job.cancel()
        wait(jobs)
        raise
