"""How ggml-cpu rounds what it multiplies a matrix by; the matrix's format decides.

ggml multiplies in whole numbers or half precision wherever it can: before a product the inputs are rounded
to a format of their own (ggml-cpu.c, ``vec_dot_type``), to 8 bits in blocks for quantized matrices. The sums
that follow are exact but for their order, so a product of dequantized weights and inputs rounded like this is
what llama.cpp computes (quants.c of ggml-cpu and its arch folders; ggml-quants.c for q8_K).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..core.gguf_file import TensorInfo
from ..core.tensor import Array, Reader, Tensor
from ..quant.gguf_weights import GgufFile

if TYPE_CHECKING:
    import torch

Rounding = Literal[
    "none", "f16", "bf16", "q8_0", "q8_1", "q8_K", "int8", "int8_16", "int8_64", "int8_128", "int8_256"
]
"""The format of the inputs; ``int8`` is what onnxruntime makes of them at accuracy level 4, in blocks of 32,
or of the size that stands behind.
"""

_BY_FORMAT: dict[str, Rounding] = {
    "f32": "none",
    "f16": "f16",
    "bf16": "bf16",
    **dict.fromkeys(("q1_0", "q2_0", "q4_0", "q5_0", "q8_0", "iq4_nl", "mxfp4", "nvfp4"), "q8_0"),
    **dict.fromkeys(("q4_1", "q5_1"), "q8_1"),
    **dict.fromkeys(("q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_xs", "tq1_0", "tq2_0"), "q8_K"),
    **dict.fromkeys(("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"), "q8_K"),
}
_SMALL, _LARGE = 32, 256  # numbers in a block


def rounding_of(format: str) -> Rounding | None:
    """How inputs of a matrix of that format are rounded; None for a format nobody multiplies by."""
    return _BY_FORMAT.get(format)


def rounded(values: torch.Tensor, rounding: Rounding) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Inputs ``(…, columns)`` as ggml-cpu rounds them, in float32, and what their blocks' sums differ by.

    The second is for formats that have a minimum a block (q4_1, q5_1): ggml multiplies it by the block's sum,
    which it keeps as a half of its own. What that half differs by from the sum of the rounded inputs is
    spread over the block, ``(…, columns)``; elsewhere None.
    """
    if rounding == "none":
        return values, None
    if rounding == "f16":
        return values.half().float(), None
    if rounding == "bf16":
        return values.bfloat16().float(), None
    if rounding == "q8_K":
        return _q8_k(values), None
    if rounding.startswith("int8"):
        return _int8(values, int(rounding[5:] or _SMALL)), None
    return _q8(values, sums=rounding == "q8_1")


def _q8(values: torch.Tensor, *, sums: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Blocks of 32 in 8 bits, ties to even as with AVX and NEON; the scale is a half, the codes are not."""
    import torch

    blocks = values.reshape(*values.shape[:-1], -1, _SMALL)
    largest = blocks.abs().amax(-1, keepdim=True)
    inverse = _divided(127, largest)
    codes = torch.round(blocks * inverse)
    scale = largest / 127
    half = scale.half().float()
    result = (codes * half).reshape(values.shape)
    if not sums:
        return result, None
    total = codes.sum(-1, keepdim=True)
    missing = (scale * total).half().float() - half * total
    return result, (missing / _SMALL).expand(blocks.shape).reshape(values.shape).clone()


def _int8(values: torch.Tensor, size: int) -> torch.Tensor:
    """Blocks of that size in 8 bits with a float32 scale, as MatMulNBits makes them.

    MLAS, QuantizeARow_CompInt8. A last block may be shorter.
    """
    import torch

    columns = values.shape[-1]
    blocks = torch.nn.functional.pad(values, (0, -columns % size))
    blocks = blocks.reshape(*values.shape[:-1], -1, size)
    largest = blocks.abs().amax(-1, keepdim=True)
    codes = torch.round(blocks * _divided(127, largest))
    return (codes * (largest / 127)).flatten(-2)[..., :columns]


def _q8_k(values: torch.Tensor) -> torch.Tensor:
    """Blocks of 256 in 8 bits; the number that is largest in magnitude becomes -127."""
    import torch

    blocks = values.reshape(*values.shape[:-1], -1, _LARGE)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    inverse = _divided(-127, largest)
    codes = torch.round(blocks * inverse).clamp(max=127)
    scale = _divided(1, inverse)
    return (codes * scale).reshape(values.shape)


def _divided(number: int, by: torch.Tensor) -> torch.Tensor:
    """The quotient rounded once; torch makes of ``127 / tensor`` a product with the reciprocal."""
    import torch

    return torch.where(by != 0, torch.full_like(by, number) / by, torch.zeros_like(by))


def minimums_of(file: GgufFile, info: TensorInfo) -> Tensor:
    """The minimum of each weight's block in a q4_1 or q5_1 tensor, in the tensor's shape, lazily."""
    read = partial(_read_minimums, file.reader(info), info.shape[1:], file.format(info).block_bytes)
    return replace(file.tensor(info), read=read)


def _read_minimums(read: Reader, shape: tuple[int, ...], block: int, start: int, stop: int) -> Array:
    """A block begins with its scale and its minimum, two halves (ggml-common.h, block_q4_1, block_q5_1)."""
    blocks = np.ascontiguousarray(read(start, stop)).reshape(-1, block)
    least = np.ascontiguousarray(blocks[:, 2:4]).view("<f2").astype(np.float32)
    return np.repeat(least, _SMALL, axis=1).reshape(stop - start, *shape)
