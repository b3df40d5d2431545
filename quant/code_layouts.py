"""Blocks taken apart into codes, steps and minima, and put together again: ggml's layouts of plain grids.

A weight is ``step * value(code) - minimum``, computed as ggml's own dequantization does, to the bit. Layouts
are those of ggml-common.h, the order of codes that of ggml-quants.c.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from .formats import Format

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Scales = Callable[[Bytes], tuple[Floats, Floats]]

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


@dataclass(frozen=True)
class Grid:
    """Which codes a format has: ``low`` to ``high``, worth ``code - offset``, or ``values[code]``.

    ``group`` weights share a step and a minimum.
    """

    group: int
    low: int
    high: int
    offset: int
    values: tuple[int, ...] = ()


@dataclass(frozen=True)
class Layout:
    """How to get at the codes of blocks ``(blocks, bytes)``.

    ``codes`` gives them as uint8 ``(blocks, weights)``, ``scales`` steps and minima as float32 ``(blocks,
    groups)``; ``put`` writes codes into blocks.
    """

    grid: Grid
    codes: Callable[[Bytes], Bytes]
    scales: Scales
    put: Callable[[Bytes, Bytes], None]


def _halves(blocks: Bytes, at: int) -> Floats:
    """The half float at a byte of each block, as float32 ``(blocks, 1)``."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nothing(steps: Floats) -> Floats:
    return np.zeros_like(steps)


# Codes in planes of bits: a byte holds those of weights that lie some way apart.


def _plane(blocks: Bytes, at: int, width: int, bits: int, chunk: int) -> Bytes:
    """Codes of ``bits`` from ``width`` bytes at ``at``: of each ``chunk`` bytes first all lowest bits."""
    held = blocks[:, at : at + width].reshape(len(blocks), -1, 1, chunk)
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    return (held >> shifts & np.uint8((1 << bits) - 1)).reshape(len(blocks), -1)


def _put_plane(blocks: Bytes, at: int, width: int, bits: int, chunk: int, codes: Bytes) -> None:
    """The reverse of ``_plane``."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8).reshape(1, 1, -1, 1)
    parts = codes.reshape(len(blocks), -1, 8 // bits, chunk) & np.uint8((1 << bits) - 1)
    blocks[:, at : at + width] = np.bitwise_or.reduce(parts << shifts, axis=2).reshape(len(blocks), width)


def _in_planes(grid: Grid, scales: Scales, *planes: tuple[int, int, int, int]) -> Layout:
    """Codes whose lowest bits lie in the first of ``planes``, those above in the next.

    A plane is ``(at, width, bits, chunk)``, see ``_plane``.
    """
    shifts = itertools.accumulate((np.uint8(bits) for _, _, bits, _ in planes[:-1]), initial=np.uint8(0))
    placed = tuple(zip(planes, shifts, strict=True))

    def codes(blocks: Bytes) -> Bytes:
        return functools.reduce(np.bitwise_or, (_plane(blocks, *plane) << shift for plane, shift in placed))

    def put(blocks: Bytes, codes: Bytes) -> None:
        for plane, shift in placed:
            _put_plane(blocks, *plane, codes >> shift)

    return Layout(grid, codes, scales, put)


def _one_scale(blocks: Bytes) -> tuple[Floats, Floats]:
    steps = _halves(blocks, 0)
    return steps, _nothing(steps)


def _scale_and_minimum(blocks: Bytes) -> tuple[Floats, Floats]:
    return _halves(blocks, 0), -_halves(blocks, 2)


def _put_q8_0(blocks: Bytes, codes: Bytes) -> None:
    blocks[:, 2:] = codes ^ np.uint8(0x80)


_Q8_0 = Layout(Grid(32, 1, 255, 128), lambda blocks: blocks[:, 2:] ^ np.uint8(0x80), _one_scale, _put_q8_0)


# K formats: blocks of 256


def _scales_q2_k(blocks: Bytes) -> tuple[Floats, Floats]:
    packed = blocks[:, :16]
    return _halves(blocks, 80) * (packed & 15), _halves(blocks, 82) * (packed >> np.uint8(4))


_Q2_K = _in_planes(Grid(16, 0, 3, 0), _scales_q2_k, (16, 64, 2, 32))


def _scales_q3_k(blocks: Bytes) -> tuple[Floats, Floats]:
    low = _plane(blocks, 96, 8, 4, 8)
    high = _plane(blocks, 104, 4, 2, 4)
    steps = _halves(blocks, 108) * ((low | high << np.uint8(4)).astype(np.int8) - 32).astype(np.float32)
    return steps, _nothing(steps)


_Q3_K = _in_planes(Grid(16, 0, 7, 4), _scales_q3_k, (32, 64, 2, 32), (0, 32, 1, 32))


def _scales_q4_k(blocks: Bytes) -> tuple[Floats, Floats]:
    """Six bits each, as get_scale_min_k4 in ggml-quants.c."""
    first, second, last = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    steps = np.concatenate([first & 63, last & 15 | first >> 6 << np.uint8(4)], axis=1)
    minima = np.concatenate([second & 63, last >> np.uint8(4) | second >> 6 << np.uint8(4)], axis=1)
    return _halves(blocks, 0) * steps, _halves(blocks, 2) * minima


_Q4_K = _in_planes(Grid(32, 0, 15, 0), _scales_q4_k, (16, 128, 4, 32))
_Q5_K = _in_planes(Grid(32, 0, 31, 0), _scales_q4_k, (48, 128, 4, 32), (16, 32, 1, 32))


def _scales_q6_k(blocks: Bytes) -> tuple[Floats, Floats]:
    steps = _halves(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return steps, _nothing(steps)


_Q6_K = _in_planes(Grid(16, 0, 63, 32), _scales_q6_k, (0, 128, 4, 64), (128, 64, 2, 32))


def _scales_iq4_xs(blocks: Bytes) -> tuple[Floats, Floats]:
    low = _plane(blocks, 4, 4, 4, 1)
    high = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    steps = _halves(blocks, 0) * ((low | high << np.uint8(4)).astype(np.int8) - 32).astype(np.float32)
    return steps, _nothing(steps)


_IQ4_XS = _in_planes(Grid(32, 0, 15, 0, _IQ4), _scales_iq4_xs, (8, 128, 4, 16))

LAYOUTS = MappingProxyType(
    {
        "q4_0": _in_planes(Grid(32, 0, 15, 8), _one_scale, (2, 16, 4, 16)),
        "q4_1": _in_planes(Grid(32, 0, 15, 0), _scale_and_minimum, (4, 16, 4, 16)),
        "q5_0": _in_planes(Grid(32, 0, 31, 16), _one_scale, (6, 16, 4, 16), (2, 4, 1, 1)),
        "q5_1": _in_planes(Grid(32, 0, 31, 0), _scale_and_minimum, (8, 16, 4, 16), (4, 4, 1, 1)),
        "q8_0": _Q8_0,
        "q2_K": _Q2_K,
        "q3_K": _Q3_K,
        "q4_K": _Q4_K,
        "q5_K": _Q5_K,
        "q6_K": _Q6_K,
        "iq4_nl": _in_planes(Grid(32, 0, 15, 0, _IQ4), _one_scale, (2, 16, 4, 16)),
        "iq4_xs": _IQ4_XS,
    }
)
"""By the names of formats."""


def layout_of(format: Format) -> Layout | None:
    """None for a format without codes that could be chosen one by one."""
    return LAYOUTS.get(format.name)


def nearest_codes(grid: Grid, x: Floats) -> npt.NDArray[np.int64]:
    """The codes nearest to x steps, as the kernels find them."""
    if grid.values:
        values = np.array(grid.values, np.float32)
        middles = np.float32(0.5) * (values[1:] + values[:-1])
        return np.searchsorted(middles, x.reshape(-1)).reshape(x.shape)
    bounded = np.clip(np.nan_to_num(x, nan=0.0), -1000, 1000)
    return np.clip(np.rint(bounded).astype(np.int64) + grid.offset, grid.low, grid.high)
