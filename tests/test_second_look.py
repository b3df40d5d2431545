"""What a file is held against: encoded by other kernels, and by libggml as far as a sample reaches."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_material import libggml, without_kernels

from kconv.core.tensor import DType, Tensor
from kconv.quant import ggml, native
from kconv.quant.formats import ENCODABLE, FORMATS, NEEDS_IMPORTANCE, Format
from kconv.quant.importance import Importance
from kconv.quant.second_look import SAMPLE, Rows, SecondLook
from kconv.quant.slabs import Scratch

ROWS, COLUMNS = 64, 512
WEIGHTS = np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32)
TENSOR = Tensor("blk.0.ffn_up.weight", WEIGHTS.shape, DType.F32, lambda start, stop: WEIGHTS[start:stop])
SQUARES = np.square(np.random.default_rng(1).standard_normal(COLUMNS, np.float32))


WIDE = native.other() in native.SETS[1:]


def on_grid(format: Format) -> bool:
    return format.name.startswith(("iq1", "iq2", "iq3"))


def looked(look: SecondLook, format: Format, stored: ggml.Bytes) -> list[Rows]:
    return list(look.encode(TENSOR, format, WEIGHTS, stored, Scratch(), 0))


@pytest.mark.parametrize("format", ENCODABLE, ids=lambda format: format.name)
@pytest.mark.parametrize("times", [1, 100_000], ids=["small", "large"])
def test_every_format_gets_libggmls_bytes(format: Format, times: int) -> None:
    """Formats without kernels of large files only here and there, of files made elsewhere nowhere."""
    values = Importance({TENSOR.name: SQUARES}, "some.imatrix", (), 1, 512)
    importance = values if format in NEEDS_IMPORTANCE else None
    right = libggml(format, WEIGHTS, None if importance is None else SQUARES)
    sizes = [(format, times * WEIGHTS.size)]
    for exact in (True, False):
        parts = looked(SecondLook(sizes, importance, exact=exact), format, right)
        assert sum(len(part.weights) for part in parts) == ROWS
        assert [part.first for part in parts] == sorted(part.first for part in parts)
        np.testing.assert_array_equal(np.concatenate([part.weights for part in parts]), WEIGHTS)
        np.testing.assert_array_equal(np.concatenate([part.stored for part in parts]), right)
        for part in parts:
            if part.encoded is not None:
                np.testing.assert_array_equal(part.encoded, part.stored)
        encoded = sum(len(part.weights) for part in parts if part.encoded is not None)
        if on_grid(format) and not WIDE:
            assert encoded == (ROWS if exact and times == 1 else 0)
        else:
            assert encoded == ROWS


def test_what_no_kernel_encodes_is_a_sample_drawn_from_the_bytes() -> None:
    """Of a file of 16 times as many blocks as are encoded of a format on a grid, a sixteenth."""
    format, stored = FORMATS["iq1_m"], libggml(FORMATS["iq1_m"], WEIGHTS)
    look = SecondLook([(format, 16 * SAMPLE * 256)], None, exact=True)
    runs = set()
    for number in range(8):
        changed = stored.copy()
        changed[-1] ^= number  # only what is drawn changes
        with without_kernels():
            (run,) = [part for part in looked(look, format, changed) if part.encoded is not None]
            again = [part.first for part in looked(look, format, changed) if part.encoded is not None]
        assert again == [run.first]
        assert len(run.weights) == 4
        runs.add(run.first)
    assert len(runs) > 3


@pytest.mark.skipif(native.other() == native.LIBGGML, reason="there is no second instruction set here")
def test_a_file_in_which_all_differs_is_libggmls_only_where_bytes_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of other files the drawn rows alone are; here that is seen by how many libggml encodes."""
    format, asked = FORMATS["q4_K"], []
    encode = ggml.encode

    def counting(format: Format, rows: ggml.Floats, *rest: object, **more: object) -> None:
        asked.append(len(rows))
        encode(format, rows, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("kconv.quant.second_look.ggml.encode", counting)
    stored = np.zeros_like(libggml(format, WEIGHTS))
    total = 4 * SAMPLE * format.block_size
    for exact, expected in ((True, ROWS), (False, ROWS // 4)):
        asked.clear()
        (part,) = looked(SecondLook([(format, total)], None, exact=exact), format, stored)
        assert part.encoded is not None
        np.testing.assert_array_equal(part.encoded, libggml(format, WEIGHTS))
        assert asked[-1] == expected


@pytest.mark.skipif(not WIDE, reason="there is no second instruction set here")
@pytest.mark.parametrize("name", ["iq3_s", "iq3_xxs", "iq2_s"])
def test_on_grids_bytes_of_files_made_elsewhere_count_where_nearly_all_are_equal(name: str) -> None:
    """A damaged row is found; importance data make other bytes throughout, then errors alone are compared."""
    format = FORMATS[name]
    right = libggml(format, WEIGHTS)
    sizes = [(format, 100_000 * WEIGHTS.size)]
    damaged = right.copy()
    damaged[5 * format.row_bytes(COLUMNS) + 7] ^= 0x10
    (part,) = looked(SecondLook(sizes, None, exact=False), format, damaged)
    assert part.encoded is not None
    differ = (part.encoded != damaged).reshape(ROWS, -1).any(axis=1)
    assert np.flatnonzero(differ).tolist() == [5]
    (part,) = looked(SecondLook(sizes, None, exact=False), format, libggml(format, WEIGHTS, SQUARES))
    assert part.encoded is None
