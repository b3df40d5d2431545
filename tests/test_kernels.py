"""Our kernels give libggml's bytes, on every instruction set this machine has."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_material import BLOCKS, IMPORTANCE, blocks, different, importance, kernel, libggml, mixture

from kconv.quant import native
from kconv.quant.formats import ENCODABLE, Format

CASES = [
    pytest.param(set, format, weighed, id=f"{set}-{format.name}{'-weighed' if weighed else ''}")
    for set in native.available_sets()
    for format in ENCODABLE
    for weighed in (False, True)
    if native.has_kernel(set, format, weighed=weighed)
]


def assert_equal(set: str, format: Format, rows: native.Floats, weights: native.Floats | None) -> None:
    found = different(format, kernel(set, format, rows, weights), libggml(format, rows, weights))
    first = rows.reshape(-1, format.block_size)[found[0]] if len(found) else None
    assert not len(found), f"{len(found)} blocks differ, first {found[0]}: {first}"


@pytest.mark.parametrize(("set", "format", "weighed"), CASES)
def test_every_kind_of_block(set: str, format: Format, weighed: bool) -> None:
    rng = np.random.default_rng(11)
    for kind in BLOCKS:
        rows = blocks(kind, rng, 48, 256).reshape(16, 768)
        for name in IMPORTANCE if weighed else ("",):
            weights = importance(name, rng, 768) if weighed else None
            try:
                assert_equal(set, format, rows, weights)
            except AssertionError as error:
                raise AssertionError(f"{kind} blocks, importance {name or 'none'}: {error}") from None


@pytest.mark.parametrize(("set", "format", "weighed"), CASES)
def test_mixtures_of_blocks(set: str, format: Format, weighed: bool) -> None:
    for seed, columns in enumerate((256, 1280, 5632)):
        rng = np.random.default_rng(seed)
        rows = mixture(rng, 3 * (1 << 18) // columns, columns, format.block_size if seed else 256)
        for name in ("squares", "half zero") if weighed else ("",):
            assert_equal(set, format, rows, importance(name, rng, columns) if weighed else None)
