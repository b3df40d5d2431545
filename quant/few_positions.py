"""Products of a matrix with few vectors, by the kernel of quant/kernels/few_positions.h."""

from __future__ import annotations

import ctypes
import functools

import numpy as np
import numpy.typing as npt

from . import native

Floats = npt.NDArray[np.float32]

WIDTH = 32
"""The kernel multiplies by a multiple of so many vectors at once."""


@functools.cache
def available() -> bool:
    """Whether there is such a kernel for this machine."""
    if native.chosen().name == native.LIBGGML:
        return False
    nothing = np.zeros((0, WIDTH), np.float32)
    return multiply(nothing, nothing.reshape(0, 0), nothing)


def multiply(vectors: Floats, matrix: Floats, out: Floats, *, set: str | None = None) -> bool:
    """Write ``matrix`` ``(rows, columns)`` times ``vectors`` ``(columns, width)`` to ``out``.

    ``out`` is ``(rows, width)``. All are contiguous, and width is a multiple of ``WIDTH``. Other threads run
    meanwhile. ``set`` is an instruction set that runs here, by default the one chosen. False if it has no
    such kernel, and nothing was done.
    """
    library = native.built()
    if library is None:
        return False
    call = library.kconv_few_positions
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    call.argtypes = (ctypes.c_int, pointer, number, pointer, number, number, pointer)
    which = native.SETS.index(set or native.chosen().name)
    return bool(
        call(which, vectors.ctypes.data, vectors.shape[1], matrix.ctypes.data, *matrix.shape, out.ctypes.data)
    )
