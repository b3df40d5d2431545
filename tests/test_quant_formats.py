"""The table of formats, and libggml as kconv reaches it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from kconv.core.errors import EnvironmentProblem, UsageError
from kconv.core.tensor import DType
from kconv.quant import ggml
from kconv.quant.formats import (
    BF16,
    ENCODABLE,
    F16,
    F32,
    FORMATS,
    GRIDS,
    NEEDS_IMPORTANCE,
    Format,
    format_of_type,
    parse_format,
)


def test_table_is_libggmls() -> None:
    library = ggml.library()
    for name, format in FORMATS.items():
        assert library.ggml_type_name(format.ggml_type) == name.encode()
        assert library.ggml_blck_size(format.ggml_type) == format.block_size
        assert library.ggml_type_size(format.ggml_type) == format.block_bytes
        assert format_of_type(format.ggml_type) is format


def test_table_is_gguf_pys() -> None:
    sizes = {kind.name: sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    for format in FORMATS.values():
        if format.name in (
            "q8_1",
            "q2_0",
        ):  # gguf-py has q8_1 of the time its scales were floats, and no q2_0
            continue
        assert sizes[format.display] == (format.block_size, format.block_bytes)
        assert gguf.GGMLQuantizationType[format.display] == format.ggml_type
    assert sizes.keys() <= {format.display for format in FORMATS.values()}


def test_sizes() -> None:
    assert FORMATS["q4_0"].row_bytes(4096) == 128 * 18
    assert FORMATS["q6_K"].tensor_bytes((3, 7, 512)) == 21 * 2 * 210
    assert F32.tensor_bytes(()) == 4
    with pytest.raises(UsageError, match=r"row of 40 weights cannot be stored as Q8_0, whose blocks have 32"):
        FORMATS["q8_0"].row_bytes(40)


def test_parse_format() -> None:
    assert parse_format("Q4_0") is FORMATS["q4_0"]
    assert parse_format("q6_k") is FORMATS["q6_K"]
    assert parse_format("BF16").display == "BF16"
    with pytest.raises(UsageError, match="unknown format 'q4'") as caught:
        parse_format("q4")
    assert all(format.name in str(caught.value) for format in ENCODABLE)


def interesting_floats() -> ggml.Floats:
    """Random bit patterns of every exponent, ties of both half formats, and their neighbours; all finite."""
    generator = np.random.default_rng(3)
    bits = generator.integers(0, 1 << 32, 200_000, np.uint32)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = halves[np.isfinite(halves)].astype(np.float32).view(np.uint32)
    offsets = np.array([[-1], [0], [1], [0xFFF], [0x1000], [0x1001]])
    near = (exact.astype(np.int64) + offsets).reshape(-1)
    brain = np.arange(1 << 16, dtype=np.uint32) << 16
    brain_near = np.concatenate([brain, brain | 0x7FFF, brain | 0x8000, brain | 0x8001])
    floats = np.concatenate([bits, near.astype(np.uint32), brain_near]).view(np.float32)
    floats = floats[np.isfinite(floats)]
    return np.ascontiguousarray(floats[: len(floats) // 2 * 2].reshape(2, -1))


def encode(format: Format, rows: ggml.Floats) -> bytes:
    out = np.empty(format.tensor_bytes(rows.shape), np.uint8)
    weights = np.ones(rows.shape[1], np.float32) if format in NEEDS_IMPORTANCE else None
    ggml.encode(format, rows, out, weights)
    return out.tobytes()


def test_f16_rounds_as_llama_cpps_converter() -> None:
    rows = interesting_floats()
    with np.errstate(over="ignore"):
        expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.F16)
    assert np.isinf(expected).any()
    assert (np.abs(expected[expected != 0]) < 6e-5).any()
    assert encode(F16, rows) == expected.tobytes()


def test_bf16_rounds_as_llama_cpps_converter() -> None:
    rows = interesting_floats()
    expected = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.BF16)
    assert encode(BF16, rows) == expected.tobytes()
    nans = np.array([[0x7FC00000, 0xFFC00000, 0x7F800001, 0xFFFFFFFF]], np.uint32).view(np.float32)
    assert encode(BF16, nans) == gguf.quants.quantize(nans, gguf.GGMLQuantizationType.BF16).tobytes()


@pytest.mark.parametrize(
    "format",
    [format for format in ENCODABLE if format.name not in ("q1_0", "q2_0")],  # gguf-py cannot decode these
    ids=lambda format: format.name,
)
def test_dequantize_equals_gguf_py(format: Format) -> None:
    generator = np.random.default_rng(5)
    rows = generator.standard_normal((6, 512), np.float32)
    data = np.frombuffer(encode(format, rows), np.uint8)
    expected = gguf.quants.dequantize(
        data.view(np.float32) if format is F32 else data.view(np.float16) if format is F16 else data,
        gguf.GGMLQuantizationType(format.ggml_type),
    )
    made = ggml.dequantize(format, data, (2, 3, 512))
    np.testing.assert_array_equal(made.reshape(-1), expected.reshape(-1))
    with pytest.raises(UsageError, match="takes"):
        ggml.dequantize(format, data[:-1], (2, 3, 512))


@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"])
def test_encode_equals_gguf_pys_own_quantizer(name: str) -> None:
    """A second implementation, in numpy; compilers may fuse what numpy rounds twice, hence not all bytes."""
    generator = np.random.default_rng(7)
    rows = generator.standard_normal((16, 1024), np.float32)
    theirs = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[name.upper()]).reshape(-1)
    mine = np.frombuffer(encode(FORMATS[name], rows), np.uint8)
    assert (mine == theirs).mean() > 0.999


def test_to_float32_of_every_half_and_brain_float() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    out = np.empty(1 << 16, np.float32)
    ggml.to_float32(bits, DType.BF16, out)
    assert out.tobytes() == (bits.astype(np.uint32) << 16).tobytes()
    halves = bits.view(np.float16)
    ggml.to_float32(halves, DType.F16, out)
    np.testing.assert_array_equal(out, halves.astype(np.float32))
    finite = halves[np.isfinite(halves)]
    quick = np.empty(finite.size, np.float32)
    ggml.to_float32(finite, DType.F16, quick, finite=True)
    assert quick.tobytes() == finite.astype(np.float32).tobytes()


def test_c_is_not_handed_arrays_it_would_misread() -> None:
    rows = np.zeros((4, 64), np.float32)
    out = np.empty(4 * 36, np.uint8)
    with pytest.raises(UsageError, match="contiguous"):
        ggml.encode(FORMATS["q4_0"], rows[:, ::2], out)
    with pytest.raises(UsageError, match="contiguous array of float32, not float64"):
        ggml.encode(FORMATS["q4_0"], rows.astype(np.float64), out)
    with pytest.raises(UsageError, match="are 144 bytes of Q4_0, not 143"):
        ggml.encode(FORMATS["q4_0"], rows, out[:-1])
    with pytest.raises(UsageError, match="does not encode Q8_K"):
        ggml.encode(FORMATS["q8_K"], rows, out)
    with pytest.raises(UsageError, match="63 values of importance for 64 columns"):
        ggml.encode(FORMATS["q4_0"], rows, out, np.ones(63, np.float32))
    with pytest.raises(UsageError, match="contiguous array of float32, not float64"):
        ggml.encode(FORMATS["q4_0"], rows, out, np.ones(64))  # type: ignore[arg-type]


@pytest.mark.parametrize("format", GRIDS, ids=lambda format: format.name)
def test_nothing_reaches_libggml_that_makes_it_abort(format: Format) -> None:
    rows = np.random.default_rng(4).standard_normal((2, 512), np.float32)
    out, ones = np.empty(format.tensor_bytes(rows.shape), np.uint8), np.ones(512, np.float32)
    for bad in (np.nan, np.inf, -1e30, 1e6):
        spoiled = rows.copy()
        spoiled[1, 300] = bad
        with pytest.raises(UsageError, match="NaN or too large"):
            ggml.encode(format, spoiled, out, ones)
    for importance in (-ones, ones * np.float32(1e30), np.where(ones > 0, np.nan, ones).astype(np.float32)):
        with pytest.raises(UsageError, match="NaN or too large"):
            ggml.encode(format, rows, out, importance)
    # extremes that do reach it
    for scale in (0.0, 1e-42, 1e-20, 1e-3, 1e4):
        for weights in (
            ones,
            ones * 0,
            ones * np.float32(1e-42),
            np.arange(512, dtype=np.float32) % 256 // 128,
        ):
            ggml.encode(format, np.clip(rows * np.float32(scale), -65504, 65504), out, weights)
    if format in NEEDS_IMPORTANCE:
        with pytest.raises(UsageError, match="cannot be encoded without importance data"):
            ggml.encode(format, rows, out)
    else:
        ggml.encode(format, np.clip(rows * 1e5, -65504, 65504), out)
    with pytest.raises(UsageError, match="4 weights do not fit into 3 places"):
        ggml.to_float32(np.zeros(4, np.uint16), DType.BF16, np.empty(3, np.float32))


def test_missing_library_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    ggml.library.cache_clear()
    try:
        with pytest.raises(EnvironmentProblem, match=r"no .*ggml-base"):
            ggml.library()
        (tmp_path / ("ggml-base.dll" if sys.platform == "win32" else "libggml-base.so")).write_bytes(b"no")
        with pytest.raises(EnvironmentProblem, match="cannot use"):
            ggml.library()
    finally:
        ggml.library.cache_clear()


def test_quant_needs_neither_llama_cpp_nor_torch() -> None:
    code = (
        "import sys; from kconv.quant import slabs, policy, ggml; ggml.library();"
        "sys.exit(any(name in sys.modules for name in ('llama_cpp', 'torch', 'transformers', 'gguf')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
