"""Limits for files made elsewhere: what libggml makes with importance data, and what damage makes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from kconv.core.gguf_file import TensorInfo
from kconv.core.tensor import DType, Tensor
from kconv.quant.formats import FORMATS, RECODABLE, Format
from kconv.quant.ggml import Bytes, Floats, dequantize, encode, library
from kconv.verify.weight_errors import Compared, measure
from kconv.verify.weight_limits import typical_error
from kconv.verify.weight_rows import Pair
from kconv.verify.weights import judge

SHAPES = ((16, 256), (128, 512), (128, 2048))
NAMES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q6_K", "q5_K", "q4_K", "q3_K", "q2_K")


@dataclass(frozen=True)
class Importance:
    """How uneven the importance of columns is: exp(sigma * normal)."""

    sigma: float

    def columns(self, count: int) -> Floats:
        chance = np.random.default_rng(count)
        return np.exp(self.sigma * chance.standard_normal(count)).astype(np.float32)


def weights(kind: str, shape: tuple[int, int]) -> Floats:
    chance = np.random.default_rng(shape[0])
    made = chance.standard_normal(shape) if kind == "normal" else chance.standard_t(4, shape)
    return (made * 0.02).astype(np.float32)


def encoded(format: Format, rows: Floats, importance: Importance | None = None) -> Bytes:
    out = np.empty(format.tensor_bytes(rows.shape), np.uint8)
    if importance is None:
        encode(format, np.ascontiguousarray(rows), out)
    else:
        columns, rows = importance.columns(rows.shape[1]), np.ascontiguousarray(rows)
        library().ggml_quantize_chunk(
            format.ggml_type, rows.ctypes.data, out.ctypes.data, 0, *rows.shape, columns.ctypes.data
        )
    return out


def verdict(format: Format, rows: Floats, data: Bytes) -> str:
    actual = compared(format, rows, data)
    info = TensorInfo("w", rows.shape, format.ggml_type, data.size)
    tensor = Tensor("w", rows.shape, DType.F32, lambda start, stop: rows[start:stop])
    return judge(Pair(info, tensor, format), actual, strict=False)


def compared(format: Format, rows: Floats, data: Bytes) -> Compared:
    return measure(rows, data, encoded(format, rows) if format in RECODABLE else None, format)


@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_importance_data_stay_within(name: str, shape: tuple[int, int], kind: str) -> None:
    format, rows = FORMATS[name], weights(kind, shape)
    assert verdict(format, rows, encoded(format, rows)) == "identical"
    for sigma in (0, 1, 3):
        assert verdict(format, rows, encoded(format, rows, Importance(sigma))) in ("within", "identical")


@pytest.mark.parametrize(
    "name", ["iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_s"]
)
def test_formats_that_are_not_encoded_anew(name: str) -> None:
    format, rows = FORMATS[name], weights("normal", (32, 512))
    for sigma in (0, 1):
        data = encoded(format, rows, Importance(sigma))
        assert verdict(format, rows, data) == ("within" if name.startswith("iq4") else "not compared")
        assert compared(format, rows, data).stored.error < typical_error(format) * 1.1
        data.reshape(32, -1)[7] = encoded(format, np.zeros((1, 512), np.float32), Importance(0))
        assert verdict(format, rows, data) == "differs"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_per_cent_is_caught(name: str, shape: tuple[int, int]) -> None:
    """Without importance data always; with them where weights are many enough to tell it from chance."""
    format, rows = FORMATS[name], weights("normal", shape)
    for factor in (1.01, 0.99):
        assert verdict(format, rows, encoded(format, rows * np.float32(factor))) == "differs"
    if rows.size > 60_000 and name not in ("q3_K", "q2_K"):
        data = encoded(format, rows * np.float32(1.01), Importance(1))
        assert verdict(format, rows, data) == "differs"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "q8_0"])
def test_importance_data_change_most_rows(name: str) -> None:
    """Which is what tells a tensor with a few damaged rows from one encoded with such data."""
    format, rows = FORMATS[name], weights("normal", (128, 512))
    for sigma in (0, 1):
        assert compared(format, rows, encoded(format, rows, Importance(sigma))).changed.count > 64


@pytest.mark.parametrize("name", ["q4_0", "q5_1", "q8_0", "q6_K", "q4_K"])
def test_a_few_weights_of_one_row_are_caught(name: str) -> None:
    """One scale wrong, or some weights: far less than importance data do to a whole tensor."""
    format, rows = FORMATS[name], weights("normal", (128, 512))
    wrong = rows.copy()
    wrong[17, :32] *= 1.5
    assert verdict(format, rows, encoded(format, wrong)) == "differs"
    wrong = rows.copy()
    wrong[17, :8] = 0
    assert verdict(format, rows, encoded(format, wrong)) == "differs"
    other = encoded(format, rows).reshape(128, -1)  # four rows encoded otherwise, as well as could be
    other[:4] = encoded(format, rows[:4] * np.float32(1.0005)).reshape(4, -1)
    assert verdict(format, rows, other.ravel()) == "within"


@pytest.mark.parametrize("damage", ["zeros", "neighbour", "rolled"])
@pytest.mark.parametrize(
    ("name", "columns"),
    [(name, columns) for name in NAMES for columns in (32, 256, 2048) if FORMATS[name].fits(columns)],
)
def test_one_row_is_caught(name: str, columns: int, damage: str) -> None:
    """Whatever the importance of the others; rows of a single block, too."""
    format, rows = FORMATS[name], weights("normal", (32, columns))
    wrong = rows.copy()
    wrong[17] = {"zeros": 0 * rows[17], "neighbour": rows[18], "rolled": np.roll(rows[17], 1)}[damage]
    for sigma in (0, 1):
        data = encoded(format, wrong, Importance(sigma))
        assert verdict(format, rows, data) == "differs"
        assert compared(format, rows, data).far.first == 17


def test_rows_of_zeros_and_rows_of_next_to_nothing() -> None:
    """Rows the checkpoint never trained are no reason to fail, unless the file fills them."""
    rows = weights("normal", (64, 256))
    rows[3], rows[4] = 0, rows[4] * 1e-9
    for name in NAMES:
        format = FORMATS[name]
        assert verdict(format, rows, encoded(format, rows, Importance(1))) in ("within", "identical")
        filled = rows.copy()
        filled[3] = rows[5]
        assert verdict(format, rows, encoded(format, filled, Importance(1))) == "differs"


def test_sums_are_those_of_float64() -> None:
    rows = weights("heavy tails", (64, 4096))
    data = encoded(FORMATS["q4_0"], rows * np.float32(1.05))
    stored = dequantize(FORMATS["q4_0"], data, rows.shape).astype(np.float64)
    exact = rows.astype(np.float64)
    measured = compared(FORMATS["q4_0"], rows, data)
    error = np.linalg.norm(stored - exact) / np.linalg.norm(exact)
    assert measured.stored.error == pytest.approx(error, rel=1e-5)
    assert measured.stored.slope == pytest.approx((stored * exact).sum() / (exact**2).sum(), rel=1e-5)
    by_row = np.linalg.norm(stored - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert (measured.worst_row, measured.worst_row_error) == (
        by_row.argmax(),
        pytest.approx(by_row.max(), 1e-5),
    )


def test_huge_weights_do_not_overflow() -> None:
    """bfloat16 goes to 3e38; the squares of such weights are beyond float32."""
    rows = weights("normal", (4, 256)) * np.float32(1e30)
    format = FORMATS["bf16"]
    actual = compared(format, rows, encoded(format, rows))
    assert actual.same
    assert actual.not_finite == 0
    assert actual.stored.error == pytest.approx(0.0017, rel=0.2)
