"""The iq1, iq2 and iq3 formats: our kernels give libggml's bytes, where its search is at its limits, too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from kernel_material import BLOCKS, IMPORTANCE, Floats, assert_equal, blocks, encodable, importance, mixture

from kconv.quant import native
from kconv.quant.formats import Format, parse_format
from kconv.quant.grids import DISTANCES, grid_codes

pytestmark = pytest.mark.skipif(not native.available_sets(), reason="the kernels are not built")

FORMATS = [pytest.param(parse_format(name), id=name) for name in DISTANCES]


def ways(format: Format) -> tuple[bool, ...]:
    """Without and with importance, if it can do without."""
    return (False, True) if native.has_kernel("baseline", format, weighed=False) else (True,)


def check(format: Format, rows: Floats, weights: Floats | None, what: str) -> None:
    assert_equal(format, *encodable(format, rows, weights), what)


@pytest.mark.parametrize("format", FORMATS)
def test_every_kind_of_block(format: Format) -> None:
    rng = np.random.default_rng(20)
    for kind in BLOCKS:
        rows = blocks(kind, rng, 12, 256).reshape(4, 768)
        if False in ways(format):
            check(format, rows, None, f"{kind} blocks")
        for name in IMPORTANCE:
            check(format, rows, importance(name, rng, 768), f"{kind} blocks, {name} importance")


@pytest.mark.parametrize("format", FORMATS)
def test_mixtures_of_blocks(format: Format) -> None:
    rng = np.random.default_rng(21)
    for weighed in ways(format):
        for size in (16, 32, 256):
            rows = mixture(rng, 48, 2816, size)
            check(format, rows, importance("squares", rng, 2816) if weighed else None, f"parts of {size}")


def _on_the_grid(rng: np.random.Generator, format: Format, count: int) -> Floats:
    """Points of the grid, with signs, times powers of two: nothing needs neighbours."""
    weights, codes = grid_codes(format)
    bits = 3 if weights == 4 else 2
    levels = (
        rng.choice(codes, (count, 256 // weights))[..., None] >> bits * np.arange(weights) & (1 << bits) - 1
    )
    points = (2 * levels + 1).reshape(count, 256) * rng.choice([-1.0, 1.0], (count, 256))
    return (points * np.exp2(rng.integers(-9, 3, (count, 1)))).astype(np.float32)


def _between(rng: np.random.Generator, format: Format, count: int) -> Floats:
    """Whole numbers: many neighbours are equally near, and rounding meets ties."""
    return rng.integers(-16, 17, (count, 256)).astype(np.float32)


def _about_to_count_as_zero(rng: np.random.Generator, format: Format, count: int) -> Floats:
    """Sub-blocks around the magnitudes below which they are zero, the smallest floats among them."""
    least = rng.choice(np.array([1e-8, 1e-15, 1.2e-38, 1e-42, 1.5e-45], np.float32), (count, 16, 1))
    near = rng.choice(np.array([0, 0.5, 0.9999999, 1, 1.0000001, -1], np.float32), (count, 16, 16))
    return (least * near).reshape(count, 256)


def _large_where_nothing_weighs(rng: np.random.Generator, format: Format, count: int) -> Floats:
    """What has no importance (test_limits) has the largest magnitudes: flipped signs then matter."""
    rows = rng.standard_normal((count, 256)).astype(np.float32)
    rows[:, ::8] *= 1e4
    return rows


def _few_values(rng: np.random.Generator, format: Format, count: int) -> Floats:
    """Equal weights, zeros of both signs among them: how iq1 sorts them decides which weigh first."""
    values = np.array([-1, -0.5, -0.0, 0.0, 0.5, 1], np.float32)
    return rng.choice(values, (count, 256))


LIMITS: tuple[Callable[[np.random.Generator, Format, int], Floats], ...] = (
    _on_the_grid,
    _between,
    _about_to_count_as_zero,
    _large_where_nothing_weighs,
    _few_values,
)


@pytest.mark.parametrize("format", FORMATS)
def test_limits(format: Format) -> None:
    rng = np.random.default_rng(22)
    one_of_eight = (np.arange(512) % 8 != 0).astype(np.float32)
    for make in LIMITS:
        rows = make(rng, format, 48).reshape(24, 512)
        what = make.__name__
        if False in ways(format):
            check(format, rows, None, what)
        check(format, rows, one_of_eight, f"{what}, the first of eight weighs nothing")
        check(format, rows, 1 - one_of_eight, f"{what}, nothing else weighs")
        check(format, rows, np.ones(512, np.float32), f"{what}, equal importance")
        check(format, rows, np.exp2(rng.integers(-149, 16, 512)).astype(np.float32), f"{what}, far apart")


@pytest.mark.parametrize("format", FORMATS)
def test_any_number_of_super_blocks(format: Format) -> None:
    """Kernels work on several at once, across rows; each row has the same importance."""
    rng = np.random.default_rng(23)
    for count in range(1, 20):
        columns = 256 * (count % 5 + 1)
        rows = mixture(rng, count, columns)
        for weighed in ways(format):
            check(format, rows, rng.random(columns, np.float32) if weighed else None, f"{count} rows")
