"""Codes chosen with error feedback: the kernels against the plain algorithm in numpy, and what they gain."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from kconv.quant import feedback, ggml, native
from kconv.quant.code_layouts import LAYOUTS, Bytes, Grid
from kconv.quant.formats import FORMATS, Format

pytestmark = pytest.mark.skipif(not native.available_sets(), reason="kconv's kernels were not built")

Floats = npt.NDArray[np.float32]
SHRUNK = 0.3


def material(rows: int = 70, columns: int = 256) -> tuple[Floats, npt.NDArray[np.float64]]:
    """Weights, and the mean of x x^T of inputs that correlate and differ in size; column 7 is dead."""
    rng = np.random.default_rng(5)
    weights = rng.standard_normal((rows, columns), np.float32) * np.float32(0.04)
    mixed = rng.standard_normal((900, columns)) @ (
        np.eye(columns) + rng.standard_normal((columns, columns)) / 16
    )
    mixed *= np.exp(rng.standard_normal(columns) / 2)
    mixed[:, 7] = 0
    return weights, mixed.T @ mixed / len(mixed)


def values_of_codes(grid: Grid, codes: Bytes) -> Floats:
    """What codes are worth in steps."""
    if grid.values:
        return np.array(grid.values, np.float32)[codes]
    return codes.astype(np.float32) - np.float32(grid.offset)


def correlated(products: npt.NDArray[np.float64], strength: float) -> feedback.Correlated:
    """Correlations as kernels take them."""
    squares = np.diag(products).astype(np.float32)
    roots = np.sqrt(np.maximum(np.diag(products), 1e-30))
    matrix = np.tril(products / np.outer(roots, roots), -1).astype(np.float32)
    tiles = (
        matrix[at : at + feedback.TILE, : at + feedback.TILE] for at in range(0, len(matrix), feedback.TILE)
    )
    found = feedback.spread(tiles, squares)
    feedback.shrink(found, strength)
    return found


def encoded(format: Format, weights: Floats, importance: Floats | None = None) -> npt.NDArray[np.uint8]:
    out = np.empty(format.tensor_bytes(weights.shape), np.uint8)
    ggml.encode(format, weights, out, importance)
    return out


def loss(format: Format, weights: Floats, data: npt.NDArray[np.uint8], h: npt.NDArray[np.float64]) -> float:
    """tr(E H E^T) with ggml's own dequantization."""
    error = (ggml.dequantize(format, data, weights.shape) - weights).astype(np.float64)
    return float(np.einsum("ri,ij,rj->", error, h, error))


def plain_codes(format: Format, weights: Floats, data: npt.NDArray[np.uint8], h: npt.NDArray[np.float64]):
    """GPTQ and coordinate descent as the textbook has them, in float64, by the inverse's Cholesky factor."""
    layout = LAYOUTS[format.name]
    grid, blocks = layout.grid, data.reshape(-1, format.block_bytes)
    codes = layout.codes(blocks).reshape(weights.shape).astype(int)
    steps, minima = (
        np.repeat(each.astype(float), grid.group, 1).reshape(weights.shape) for each in layout.scales(blocks)
    )
    w, live = weights.astype(float), np.diag(h) > 0

    def value(code, i):
        return steps[:, i] * values_of_codes(grid, code.astype(np.uint8)) - minima[:, i]

    def nearest(target, i):
        near = place(grid, (w[:, i] + minima[:, i]) / np.where(steps[:, i], steps[:, i], 1))
        found = place(grid, (target + minima[:, i]) / np.where(steps[:, i], steps[:, i], 1))
        return np.where(
            steps[:, i] != 0, np.clip(np.clip(found, near - 1, near + 1), grid.low, grid.high), codes[:, i]
        )

    upper = np.linalg.cholesky(np.linalg.inv(h[np.ix_(live, live)])).T
    alive, work = np.flatnonzero(live), w.copy()
    for at, i in enumerate(alive):
        codes[:, i] = nearest(work[:, i], i)
        error = (work[:, i] - value(codes[:, i], i)) / upper[at, at]
        work[:, alive[at:]] -= error[:, None] * upper[at, at:]
    e = np.stack([value(codes[:, i], i) for i in range(w.shape[1])], 1) - w
    for _ in range(feedback.DESCENTS):
        for i in alive:
            rest = e @ h[:, i] - e[:, i] * h[i, i]
            codes[:, i] = nearest(w[:, i] - rest / h[i, i], i)
            e[:, i] = value(codes[:, i], i) - w[:, i]
    return codes


def place(grid: Grid, x):
    if not grid.values:
        return np.clip(np.rint(np.clip(x, -1000, 1000)).astype(int) + grid.offset, grid.low, grid.high)
    return np.abs(x[:, None] - np.array(grid.values)).argmin(1)


@pytest.mark.parametrize("name", LAYOUTS)
def test_codes_are_those_of_the_plain_algorithm_and_lose_less(name: str) -> None:
    format, layout = FORMATS[name], LAYOUTS[name]
    weights, products = material()
    h = products * (1 - SHRUNK) + SHRUNK * np.diag(np.diag(products))
    stock = encoded(format, weights, np.diag(products).astype(np.float32))
    given = correlated(products, SHRUNK)
    assert feedback.losses(format, weights, stock, given).sum() == pytest.approx(
        loss(format, weights, stock, h), rel=1e-3
    )
    assert feedback.factor(given)
    data = stock.copy()
    feedback.refine(format, weights, data, given)
    codes = layout.codes(data.reshape(-1, format.block_bytes)).reshape(weights.shape)
    expected = plain_codes(format, weights, stock, h)
    assert (codes == expected).mean() > 0.99  # in descents a tie that falls otherwise changes its row
    assert loss(format, weights, data, h) < 0.9 * loss(format, weights, stock, h)
    assert loss(format, weights, data, h) == pytest.approx(
        loss(format, weights, _with(format, stock, expected), h), rel=2e-3
    )
    before = layout.codes(stock.reshape(-1, format.block_bytes)).reshape(weights.shape)
    assert (codes[:, 7] == before[:, 7]).all()  # nothing flows into it


def _with(format: Format, stock: npt.NDArray[np.uint8], codes) -> npt.NDArray[np.uint8]:
    data = stock.copy()
    blocks = data.reshape(-1, format.block_bytes)
    LAYOUTS[format.name].put(blocks, codes.astype(np.uint8).reshape(len(blocks), -1))
    return data


@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_are_taken_apart_as_ggml_dequantizes_them(name: str) -> None:
    """On random bytes: every code, scale and minimum there is, and back again."""
    format, layout = FORMATS[name], LAYOUTS[name]
    data = np.random.default_rng(3).integers(0, 256, (300, format.block_bytes), np.uint8)
    halves = {"q2_K": (80, 82), "q3_K": (108,), "q6_K": (208,)}.get(
        name, (0, 2) if name in ("q4_1", "q5_1", "q4_K", "q5_K") else (0,)
    )
    for at in halves:  # no infinities
        data[:, at + 1] &= 0xBF
    codes, (steps, minima) = layout.codes(data), layout.scales(data)
    by_group = values_of_codes(layout.grid, codes).reshape(len(data), -1, layout.grid.group)
    values = (steps[:, :, None] * by_group - minima[:, :, None]).reshape(len(data), -1)
    assert np.array_equal(values, ggml.dequantize(format, data.reshape(-1), values.shape))
    again = data.copy()
    layout.put(again, codes)
    assert np.array_equal(again, data)
    layout.put(again, np.full_like(codes, layout.grid.low))
    assert (layout.codes(again) == layout.grid.low).all()


DIGEST = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import test_feedback as t
print(t.digest())
"""


def digest() -> str:
    """Of all that the kernels of this process's instruction set make."""
    weights, products = material(130, 320)
    given, found = correlated(products, 0.1), hashlib.sha256()
    assert feedback.factor(given)
    found.update(given.matrix.tobytes())
    for name, layout in LAYOUTS.items():
        rows = weights[:, :256] if FORMATS[name].block_size == 256 else weights
        data = np.empty(FORMATS[name].tensor_bytes(rows.shape), np.uint8)
        ggml.encode(FORMATS[name], np.ascontiguousarray(rows), data, None, kernels="none")
        if rows.shape[1] == 320:
            feedback.refine(FORMATS[name], rows, data, given)
            found.update(feedback.losses(FORMATS[name], rows, data, given).tobytes())
        assert layout.grid.group in (16, 32)
        found.update(data.tobytes())
    return found.hexdigest()


def test_bytes_are_the_same_on_every_instruction_set() -> None:
    folder = os.path.dirname(__file__)
    found = {
        subprocess.run(
            [sys.executable, "-c", DIGEST, folder],
            env={**os.environ, native.VARIABLE: name},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in native.available_sets()
    }
    assert found == {digest() + "\n"}


def test_any_number_of_rows_and_columns_gives_the_codes_of_each_row_by_itself() -> None:
    format = FORMATS["q4_0"]
    weights, products = material(70, 96)
    given = correlated(products, 0.1)
    assert feedback.factor(given)
    whole = encoded(format, weights)
    feedback.refine(format, weights, whole, given)
    for rows in (slice(0, 1), slice(3, 68), slice(64, 70)):
        part = encoded(format, np.ascontiguousarray(weights[rows]))
        feedback.refine(format, np.ascontiguousarray(weights[rows]), part, given)
        assert np.array_equal(part.reshape(-1, 54), whole.reshape(-1, 54)[rows])


def test_zero_scales_and_inputs_that_are_copies_of_each_other() -> None:
    format = FORMATS["q4_K"]
    weights, products = material()
    weights[:, :64] = 0
    weights[3] = 0
    products[:, 11] = products[:, 10]
    products[11] = products[10]
    given = correlated(products, 0.1)
    assert feedback.factor(given)
    data = encoded(format, weights)
    feedback.refine(format, weights, data, given)
    assert np.isfinite(ggml.dequantize(format, data, weights.shape)).all()
    assert not ggml.dequantize(format, data, weights.shape)[3].any()


def test_what_is_no_matrix_of_correlations_is_not_factored() -> None:
    _, products = material()
    for wrong in (np.nan, 3.0, -2.0):
        broken = products.copy()
        broken[100, 20] = wrong * np.sqrt(broken[100, 100] * broken[20, 20])
        assert not feedback.factor(correlated(broken, 0.0))
