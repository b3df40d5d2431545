"""Our kernels give libggml's bytes, on every instruction set this machine has."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_material import BLOCKS, IMPORTANCE, assert_equal, blocks, importance, mixture

from kconv.quant import native
from kconv.quant.formats import ENCODABLE, GRIDS, Format

CASES = [
    pytest.param(format, weighed, id=f"{format.name}{'-weighed' if weighed else ''}")
    for format in ENCODABLE
    if format not in GRIDS  # tests/test_kernels_grids.py
    for weighed in (False, True)
    if any(native.has_kernel(set, format, weighed=weighed) for set in native.available_sets())
]


@pytest.mark.parametrize(("format", "weighed"), CASES)
def test_every_kind_of_block(format: Format, weighed: bool) -> None:
    rng = np.random.default_rng(11)
    for kind in BLOCKS:
        rows = blocks(kind, rng, 48, 256).reshape(16, 768)
        for name in IMPORTANCE if weighed else ("no",):
            weights = importance(name, rng, 768) if weighed else None
            assert_equal(format, rows, weights, f"{kind} blocks, {name} importance")


@pytest.mark.parametrize(("format", "weighed"), CASES)
def test_mixtures_of_blocks(format: Format, weighed: bool) -> None:
    for seed, columns in enumerate((256, 1280, 5632)):
        rng = np.random.default_rng(seed)
        rows = mixture(rng, 3 * (1 << 18) // columns, columns, format.block_size if seed else 256)
        for name in ("squares", "half zero") if weighed else ("no",):
            weights = importance(name, rng, columns) if weighed else None
            assert_equal(format, rows, weights, f"{columns} columns, {name} importance")
