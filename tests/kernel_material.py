"""Blocks that are hard to encode, importance for them, and libggml's and our encoding of both.

Shared by the tests of the kernels and by tools/compare_kernels.py.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pytest

from kconv.quant import ggml, native
from kconv.quant.formats import GRIDS, Format

Floats = npt.NDArray[np.float32]
Made = Callable[[np.random.Generator, int, int], npt.NDArray[np.floating]]

LONGEST = np.float32(3e38)


def _powers(low: float, high: float) -> Callable[[np.random.Generator, tuple[int, ...]], Floats]:
    return lambda rng, shape: np.float32(10) ** rng.uniform(low, high, shape).astype(np.float32)


def _scaled(low: float, high: float) -> Made:
    """Normal weights; every block has a magnitude of its own."""
    return lambda rng, n, size: rng.standard_normal((n, size), np.float32) * _powers(low, high)(rng, (n, 1))


def _any_bits(rng: np.random.Generator, n: int, size: int) -> Floats:
    bits = rng.integers(0, 1 << 32, (n, size), np.uint32)
    bits[(bits & 0x7F800000) == 0x7F800000] &= 0xBFFFFFFF  # what would be infinite or NaN becomes small
    return bits.view(np.float32)


def _one_hot(rng: np.random.Generator, n: int, size: int) -> Floats:
    rows = np.zeros((n, size), np.float32)
    rows[np.arange(n), rng.integers(0, size, n)] = rng.standard_normal(n, np.float32)
    return rows


def _bf16(rng: np.random.Generator, n: int, size: int) -> Floats:
    rows = rng.standard_normal((n, size), np.float32) * np.float32(0.02)
    return ((rows.view(np.uint32) + 0x8000) & 0xFFFF0000).view(np.float32)


def _zero_parts(rng: np.random.Generator, n: int, size: int) -> Floats:
    """Groups of 16 that are all zero, of either sign, between others."""
    rows = rng.standard_normal((n, size // 16, 16), np.float32)
    rows[rng.random((n, size // 16)) < 0.5] *= np.float32(0)
    return rows.reshape(n, size)


def _uneven_parts(rng: np.random.Generator, n: int, size: int) -> Floats:
    """Groups of 16 of very different magnitudes, so that many groups' scales round to zero."""
    rows = rng.standard_normal((n, size // 16, 16), np.float32) * _powers(-8, 1)(rng, (n, size // 16, 1))
    return rows.reshape(n, size)


BLOCKS: dict[str, Made] = {
    "normal": lambda rng, n, size: rng.standard_normal((n, size), np.float32) * np.float32(0.02),
    "bf16": _bf16,
    "f16": lambda rng, n, size: rng.standard_normal((n, size), np.float32).astype(np.float16),
    "heavy": lambda rng, n, size: rng.standard_t(2, (n, size)) * 0.02,
    "uniform": lambda rng, n, size: rng.uniform(-1, 1, (n, size)),
    "positive": lambda rng, n, size: np.abs(rng.standard_normal((n, size), np.float32)),
    "negative": lambda rng, n, size: -np.abs(rng.standard_normal((n, size), np.float32)),
    "shifted": lambda rng, n, size: rng.standard_normal((n, size)) + 5 * rng.standard_normal((n, 1)),
    "constant": lambda rng, n, size: np.repeat(rng.standard_normal((n, 1), np.float32), size, 1),
    "nearly constant": lambda rng, n, size: 1 + rng.integers(-2, 3, (n, size)) * 2.0**-23,
    "zero": lambda rng, n, size: np.zeros((n, size), np.float32),
    "signed zero": lambda rng, n, size: np.copysign(np.float32(0), rng.standard_normal((n, size))),
    "one hot": _one_hot,
    "sparse": lambda rng, n, size: rng.standard_normal((n, size)) * (rng.random((n, size)) < 0.05),
    "equal magnitudes": lambda rng, n, size: rng.choice(np.array([-1, 1], np.float32), (n, size)),
    "three levels": lambda rng, n, size: rng.integers(-1, 2, (n, size)) * np.float32(0.37),
    "ties": lambda rng, n, size: rng.integers(-16, 17, (n, size)) / 2,
    "whole": lambda rng, n, size: rng.integers(-127, 128, (n, size)),
    "zero parts": _zero_parts,
    "uneven parts": _uneven_parts,
    "tiny": _scaled(-16, -5),
    "denormal": _scaled(-45, -36),
    "large": _scaled(2, 5),
    "huge": _scaled(30, 37.5),
    "mixed": lambda rng, n, size: rng.standard_normal((n, size)) * _powers(-6, 3)(rng, (n, size)),
    "far mixed": lambda rng, n, size: rng.standard_normal((n, size)) * _powers(-44, 37)(rng, (n, size)),
    "any bits": _any_bits,
}

IMPORTANCE: dict[str, Callable[[np.random.Generator, int], npt.NDArray[np.floating]]] = {
    "squares": lambda rng, columns: rng.standard_normal(columns) ** 2,
    "ones": lambda rng, columns: np.ones(columns),
    "zeros": lambda rng, columns: np.zeros(columns),
    "half zero": lambda rng, columns: rng.random(columns) * (rng.random(columns) < 0.5),
    "zero parts": lambda rng, columns: np.repeat(rng.random(columns // 16) < 0.5, 16) * rng.random(columns),
    "powers": lambda rng, columns: _powers(-8, 8)(rng, (columns,)),
    "denormal": lambda rng, columns: rng.random(columns) * 1e-40,
    "huge": lambda rng, columns: rng.random(columns) * 1e30,
}


def blocks(kind: str, rng: np.random.Generator, count: int, size: int = 256) -> Floats:
    """``count`` finite blocks (count, size) of a kind."""
    with np.errstate(over="ignore", under="ignore"):
        made = np.asarray(BLOCKS[kind](rng, count, size), np.float32)
    return np.clip(made, -LONGEST, LONGEST)


def mixture(rng: np.random.Generator, rows: int, columns: int, size: int = 256) -> Floats:
    """Rows whose blocks of ``size`` are of kinds drawn at random, a third of them normal."""
    count = rows * columns // size
    names = list(BLOCKS)
    drawn = rng.integers(0, len(names) * 3 // 2, count)
    made = np.empty((count, size), np.float32)
    for index, name in enumerate(names):
        places = drawn == index if index else (drawn == 0) | (drawn >= len(names))
        if places.any():
            made[places] = blocks(name, rng, int(places.sum()), size)
    return made.reshape(rows, columns)


def importance(kind: str, rng: np.random.Generator, columns: int) -> Floats:
    """Importance (columns,) of a kind."""
    return np.asarray(IMPORTANCE[kind](rng, columns), np.float32)


def encodable(format: Format, rows: Floats, weights: Floats | None) -> tuple[Floats, Floats | None]:
    """Both as they are or, for grids, cut to what libggml does not abort at."""
    if format not in GRIDS:
        return rows, weights
    rows = np.clip(rows, -6e4, 6e4)
    weights = None if weights is None else np.clip(weights, 0, np.float32(1e5))
    assert ggml.can_encode(format, float(np.abs(rows).max(initial=0)), weights)
    return rows, weights


@contextlib.contextmanager
def without_kernels() -> Iterator[None]:
    """As where none were built: libggml encodes, and there is no second set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(native.VARIABLE, native.LIBGGML)
        _choose_again()
        yield
    _choose_again()


def _choose_again() -> None:
    native.chosen.cache_clear()
    native.other.cache_clear()


def libggml(format: Format, rows: Floats, weights: Floats | None = None) -> ggml.Bytes:
    """What ggml_quantize_chunk makes of ``rows``."""
    out = np.full(format.tensor_bytes(rows.shape), 0xA5, np.uint8)
    weighed = None if weights is None else weights.ctypes.data
    ggml.library().ggml_quantize_chunk(
        format.ggml_type, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weighed
    )
    return out


def kernel(set: str, format: Format, rows: Floats, weights: Floats | None = None) -> ggml.Bytes:
    """What our kernel of an instruction set makes of them."""
    out = np.full(format.tensor_bytes(rows.shape), 0x5A, np.uint8)
    native.run(set, format, rows, out, weights, ggml.library().ggml_quantize_chunk)
    return out


def different(format: Format, ours: ggml.Bytes, theirs: ggml.Bytes) -> npt.NDArray[np.intp]:
    """The places of the blocks that are not equal."""
    unequal = (ours != theirs).reshape(-1, format.block_bytes).any(axis=1)
    return np.flatnonzero(unequal)


def assert_equal(format: Format, rows: Floats, weights: Floats | None, what: str) -> None:
    """Every instruction set gives libggml's bytes."""
    theirs = libggml(format, rows, weights)
    for set in native.available_sets():
        differing = different(format, kernel(set, format, rows, weights), theirs)
        first = rows.reshape(-1, format.block_size)[differing[0]] if len(differing) else None
        assert not len(differing), (
            f"{set}, {what}: {len(differing)} blocks differ, first {differing[0]}: {first}"
        )
