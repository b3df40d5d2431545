"""Formats with a search where it goes wrong, gives up or overflows: still libggml's bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_material import Floats, assert_equal, blocks, importance, mixture

from kconv.quant import native
from kconv.quant.formats import Format, parse_format

pytestmark = pytest.mark.skipif(not native.available_sets(), reason="the kernels are not built")

CASES = [
    pytest.param(parse_format(name), id=name)
    for name in (
        "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs", "q4_0", "q4_1", "q5_0", "q5_1", "tq1_0",
        "tq2_0", "mxfp4",
    )
]  # fmt: skip

Shape = tuple[int, ...]


def _powers_of_two(low: int, high: int, repeat: int = 16) -> Callable[[np.random.Generator, Shape], Floats]:
    """Normal weights times powers of two, one each ``repeat`` weights."""

    def make(rng: np.random.Generator, shape: Shape) -> Floats:
        powers = np.exp2(rng.integers(low, high, (*shape[:-1], shape[-1] // repeat))).astype(np.float32)
        return rng.standard_normal(shape, np.float32) * np.repeat(powers, repeat, -1)

    return make


def _signs(rng: np.random.Generator, shape: Shape) -> Floats:
    return rng.choice(np.array([-1, 1], np.float32), shape)


WEIGHTS: dict[str, Callable[[np.random.Generator, Shape], Floats]] = {
    # Of 16 blocks some have scales, as multiples of the largest, that round to zero: their levels stay.
    "some scales vanish": _powers_of_two(-14, 1),
    # The half float of a super-block vanishes, or is denormal, so that quotients are far out of range.
    "halves vanish": _powers_of_two(-36, -12, 256),
    # mxfp4: log2f of the largest weight is a whole number, or rounds to one that is above it.
    "just below powers of two": lambda rng, shape: (
        _signs(rng, shape)
        * np.exp2(rng.integers(-40, 40, (*shape[:-1], 1))).astype(np.float32)
        * rng.choice(np.float32(1) - np.arange(-2, 9, dtype=np.float32) * np.float32(2**-24), shape)
    ),
    # Halves between levels.
    "ternary ties": lambda rng, shape: (
        rng.choice(np.array([-1, -0.5, -0.49999997, 0.49999997, 0.5, 0.50000006, 1], np.float32), shape)
        * np.float32(0.7)
    ),
    # GROUP_MAX_EPS decides.
    "about to count as zero": lambda rng, shape: (
        _signs(rng, shape)
        * np.float32(1e-15)
        * rng.choice(np.array([0.5, 0.9999999, 1, 1.0000001], np.float32), shape)
    ),
    # The first of two equal magnitudes gives the sign of the scale.
    "opposite pairs": lambda rng, shape: (
        np.repeat(rng.standard_normal((*shape[:-1], shape[-1] // 8), np.float32), 8, -1) * _signs(rng, shape)
    ),
    "squares overflow": lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(1e19),
    "largest floats": lambda rng, shape: np.float32(3.4e38) * _signs(rng, shape),
    "inverses overflow": lambda rng, shape: rng.standard_normal(shape, np.float32) * np.float32(2e-39),
}

IMPORTANCE: dict[str, Callable[[np.random.Generator, int], Floats]] = {
    "negative": lambda rng, columns: rng.standard_normal(columns, np.float32),
    "sums overflow": lambda rng, columns: rng.random(columns, np.float32) * np.float32(3e38),
    # Sums of some blocks overflow and of others vanish: q3_K then searches among infinite and NaN scales.
    "far apart": lambda rng, columns: np.exp2(rng.integers(-149, 128, columns)).astype(np.float32),
    # The search then fits noise: scales may be negative, and q4_K's, as multiples, have more than six bits.
    "one weight of 16": lambda rng, columns: (np.arange(columns) % 16 == 5).astype(np.float32),
    "one weight of 32": lambda rng, columns: (np.arange(columns) % 32 == 5).astype(np.float32),
}


@pytest.mark.parametrize("format", CASES)
def test_degenerate_blocks(format: Format) -> None:
    rng = np.random.default_rng(6)
    for kind, make in WEIGHTS.items():
        rows = make(rng, (40, 768))
        assert np.isfinite(rows).all()
        assert_equal(format, rows, None, kind)
        for name, weigh in IMPORTANCE.items():
            assert_equal(format, rows, weigh(rng, 768), f"{kind}, importance {name}")


@pytest.mark.parametrize("format", CASES)
def test_degenerate_importance_of_all_sorts_of_blocks(format: Format) -> None:
    rng = np.random.default_rng(3)
    for name, weigh in IMPORTANCE.items():
        assert_equal(format, mixture(rng, 400, 1280), weigh(rng, 1280), name)


@pytest.mark.parametrize("name", ["q2_K", "q4_K", "q5_K", "q4_1", "q5_1"])
def test_levels_out_of_range(name: str) -> None:
    """Where one weight counts far more than the others, a fit may put the minimum so far off that rounding,
    which takes the low bits of a sum, wraps around: some blocks in ten thousand.
    """
    rng = np.random.default_rng(4)
    rows = blocks("sparse", rng, 4000).reshape(800, 1280)
    assert_equal(parse_format(name), rows, importance("powers", rng, 1280), "sparse blocks")


@pytest.mark.parametrize("format", CASES)
def test_any_number_of_super_blocks(format: Format) -> None:
    """Kernels work on several at once, across rows; each row has the same importance."""
    rng = np.random.default_rng(2)
    for count in range(1, 36):
        columns = 256 * (count % 5 + 1)
        rows = mixture(rng, count, columns)
        assert_equal(format, rows, None, f"{count} rows")
        assert_equal(format, rows, rng.random(columns, np.float32), f"{count} rows, importance")
