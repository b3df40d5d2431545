"""Slabs: the same bytes however they are cut, nothing unfinite missed, nothing copied in vain."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quant_material import adversarial, stored

from kconv.core.errors import UsageError
from kconv.core.tensor import DType
from kconv.quant import ggml, slabs
from kconv.quant.formats import BF16, ENCODABLE, F16, F32, FORMATS, GRIDS, NEEDS_IMPORTANCE, Format
from kconv.quant.slabs import Scratch, all_finite, convert_slab, count_nonfinite, has_overflowed

DTYPES = list(DType)
IMPORTANCE = np.exp(np.random.default_rng(0).standard_normal(512)).astype(np.float32)


def bits_of(dtype: DType, patterns: npt.NDArray[np.uint32]) -> npt.NDArray[Any]:
    return patterns.astype(np.uint32 if dtype is DType.F32 else np.uint16).view(dtype.storage)


def reference(array: npt.NDArray[Any], dtype: DType) -> npt.NDArray[np.float32]:
    if dtype is DType.BF16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


@pytest.mark.parametrize("dtype", [DType.F16, DType.BF16])
def test_every_pattern_of_16_bits_alone(dtype: DType) -> None:
    every = bits_of(dtype, np.arange(1 << 16, dtype=np.uint32))
    finite = np.isfinite(reference(every, dtype))
    assert [all_finite(every[i : i + 1], dtype) for i in range(1 << 16)] == finite.tolist()


@given(
    dtype=st.sampled_from(DTYPES),
    patterns=st.lists(st.integers(0, (1 << 32) - 1), min_size=1, max_size=40),
    forced=st.sampled_from([0, 0x7F80, 0xFF80, 0x7C00, 0xFC00, 0x7F7F, 0xFF7F, 0x7FFF, 0xFFFF]),
)
@settings(max_examples=300, deadline=None)
def test_largest_is_exact(dtype: DType, patterns: list[int], forced: int) -> None:
    shift = 16 if dtype is DType.F32 else 0
    array = bits_of(dtype, np.array([*patterns, forced << shift], np.uint64).astype(np.uint32))
    floats = reference(array, dtype)
    slab = convert_slab(array, dtype, [], Scratch())
    assert slab.finite == all_finite(array, dtype) == bool(np.isfinite(floats).all())
    assert count_nonfinite(array, dtype) == (np.isnan(floats).sum(), np.isinf(floats).sum())
    largest = np.abs(floats).max()  # NaN wins in numpy, too
    assert math.isnan(slab.largest) if np.isnan(largest) else slab.largest == largest


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_one_bad_weight_is_found_wherever_it_is(dtype: DType, value: float) -> None:
    rows = stored(adversarial(40, 96, 1), dtype)
    bad = stored(np.array([value], np.float32), dtype)
    for place in (0, 1, 63, 96 * 39 + 95):
        spoiled = rows.copy()
        spoiled.reshape(-1)[place : place + 1] = bad
        slab = convert_slab(spoiled, dtype, [FORMATS["q8_0"]], Scratch())
        assert not slab.finite
        assert sum(count_nonfinite(spoiled, dtype)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", ENCODABLE, ids=lambda format: format.name)
def test_tiles_and_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch, dtype: DType, format: Format) -> None:
    rows = stored(np.clip(adversarial(53, 512, 2), -100, 100), dtype)
    importance = IMPORTANCE if format in NEEDS_IMPORTANCE else None
    whole = convert_slab(rows, dtype, [format], Scratch(), importance).data[0].tobytes()
    for tile in (1, 512, 1500, 1 << 30):
        monkeypatch.setattr(slabs, "TILE", tile)
        scratch = Scratch()
        for step in (1, 5, 53):
            parts = [
                convert_slab(rows[i : i + step], dtype, [format], scratch, importance).data[0].tobytes()
                for i in range(0, 53, step)
            ]
            assert b"".join(parts) == whole


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q2_K", "q4_K", "q6_K", "iq4_xs", "iq3_s"])
def test_each_expert_has_importance_of_its_own(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    rows = np.clip(adversarial(21, 512, 7), -100, 100).reshape(3, 7, 512)
    importance = np.concatenate([IMPORTANCE, IMPORTANCE[::-1], IMPORTANCE * 0 + 1])
    alone = [
        convert_slab(rows[i], DType.F32, [FORMATS[name]], Scratch(), importance[i * 512 : (i + 1) * 512])
        for i in range(3)
    ]
    for tile in (1, 1500, 1 << 20):
        monkeypatch.setattr(slabs, "TILE", tile)
        made = convert_slab(rows, DType.F32, [FORMATS[name]], Scratch(), importance)
        assert made.data[0].tobytes() == b"".join(slab.data[0].tobytes() for slab in alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_several_formats_from_one_read(dtype: DType) -> None:
    rows = stored(np.clip(adversarial(30, 256, 4), -100, 100), dtype)
    formats = [FORMATS["q4_0"], F32, F16, FORMATS["q4_0"], BF16, FORMATS["q6_K"]]
    slab = convert_slab(rows, dtype, formats, Scratch())
    for format, data in zip(formats, slab.data, strict=True):
        assert data.tobytes() == convert_slab(rows, dtype, [format], Scratch()).data[0].tobytes()


@pytest.mark.parametrize(("dtype", "format"), [(DType.F32, F32), (DType.F16, F16), (DType.BF16, BF16)])
def test_same_type_passes_through(dtype: DType, format: Format) -> None:
    """Bit by bit, NaN payloads included, and without a copy."""
    generator = np.random.default_rng(6)
    rows = bits_of(dtype, generator.integers(0, 1 << 32, 4096, np.uint64).astype(np.uint32)).reshape(8, -1)
    data = convert_slab(rows, dtype, [format], Scratch()).data[0]
    assert data.tobytes() == rows.tobytes()
    assert np.shares_memory(data, rows)


def test_layouts_of_the_source() -> None:
    """Views, transposed and unaligned arrays, vectors, several axes, nothing at all."""
    wide = adversarial(20, 512, 8)
    q8_0 = FORMATS["q8_0"]
    expected = convert_slab(np.ascontiguousarray(wide[::2, 128:256]), DType.F32, [q8_0], Scratch()).data[0]
    view = convert_slab(wide[::2, 128:256], DType.F32, [q8_0], Scratch()).data[0]
    assert view.tobytes() == expected.tobytes()
    unaligned = np.frombuffer(b"\0" + wide.tobytes(), np.float32, offset=1).reshape(wide.shape)
    aligned = convert_slab(wide, DType.F32, [q8_0, F32], Scratch())
    for mine, theirs in zip(
        convert_slab(unaligned, DType.F32, [q8_0, F32], Scratch()).data, aligned.data, strict=True
    ):
        assert mine.tobytes() == theirs.tobytes()
    deep = convert_slab(wide.reshape(5, 4, 512), DType.F32, [q8_0], Scratch()).data[0]
    assert deep.tobytes() == aligned.data[0].tobytes()
    vector = stored(wide[0], DType.BF16)
    assert convert_slab(vector, DType.BF16, [F32], Scratch()).data[0].tobytes() == wide[0].tobytes()
    empty = convert_slab(wide[:0], DType.F32, [q8_0], Scratch())
    assert (empty.data[0].size, empty.largest) == (0, 0.0)


def test_wrong_storage_is_refused() -> None:
    with pytest.raises(UsageError, match="BF16 travel as uint16"):
        convert_slab(np.zeros((2, 32), np.float32), DType.BF16, [F32], Scratch())
    with pytest.raises(UsageError, match="row of 40 weights cannot be stored as Q4_0"):
        convert_slab(np.zeros((2, 40), np.float32), DType.F32, [FORMATS["q4_0"]], Scratch())


def test_overflow_is_noticed() -> None:
    rows = adversarial(4, 256, 9)
    rows[3, 200] = 65519.0
    assert convert_slab(rows, DType.F32, [F16, F32], Scratch()).overflowed == ()
    rows[3, 200] = -65520.0
    assert convert_slab(rows, DType.F32, [F16, F32, FORMATS["q4_0"]], Scratch()).overflowed == (F16,)
    rows[3, 200] = 3.4e38
    assert convert_slab(rows, DType.F32, [F32, BF16], Scratch()).overflowed == (BF16,)
    rows[3, 200] = 1e12
    formats = [format for format in ENCODABLE if format.quantized and format.name not in ("mxfp4", "nvfp4")]
    slab = convert_slab(rows, DType.F32, [BF16, *formats], Scratch(), np.ones(256, np.float32))
    assert set(slab.overflowed) == set(formats) - set(GRIDS)
    assert set(slab.impossible) == set(GRIDS)


@pytest.mark.parametrize("format", ENCODABLE, ids=lambda format: format.name)
def test_what_libggml_calls_invalid_has_overflowed(format: Format) -> None:
    """ggml_validate_row_data on blocks whose scales, wherever they are, were made infinite or NaN."""
    validate = ctypes.CDLL(str(ggml.library_path())).ggml_validate_row_data
    validate.argtypes, validate.restype = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_bool
    rows = np.random.default_rng(3).standard_normal((2, 512), np.float32)
    whole = convert_slab(rows, DType.F32, [format], Scratch(), np.ones(512, np.float32)).data[0]
    collected = set()
    spoiled = np.tile(np.array([0xFF, 0x7F], np.uint8), 4 if format.name == "iq1_m" else 1)
    for place in range(whole.size - len(spoiled) + 1):
        data = whole.copy()
        data[place : place + len(spoiled)] = spoiled
        valid = validate(format.ggml_type, data.ctypes.data, data.size)
        collected.add(valid)
        if format is not F32:
            assert has_overflowed(format, data) == (not valid), place
    assert (False in collected) == (format.name != "nvfp4")


@pytest.mark.parametrize("format", ENCODABLE, ids=lambda format: format.name)
def test_unfinite_weights_are_encoded_all_the_same(format: Format) -> None:
    """What --allow-nan asks for: no crash, the same bytes every time, and finite blocks untouched.

    Where libggml would abort it is said that it cannot be done.
    """
    rows = adversarial(8, 512, 10)
    spoiled = rows.copy()
    spoiled[2, 5], spoiled[2, 300], spoiled[5, 511] = math.nan, math.inf, -math.inf
    slab = convert_slab(spoiled, DType.F32, [format], Scratch())
    data = slab.data[0].reshape(8, -1)
    assert not slab.finite
    if format in GRIDS:
        assert slab.impossible == (format,)
        return
    assert data.tobytes() == convert_slab(spoiled, DType.F32, [format], Scratch()).data[0].tobytes()
    clean = convert_slab(rows, DType.F32, [format], Scratch()).data[0].reshape(8, -1)
    untouched = [0, 1, 3, 4, 6, 7]
    np.testing.assert_array_equal(data[untouched], clean[untouched])
