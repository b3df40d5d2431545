"""What the writer of ONNX puts where, and what of it onnx and numpy read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from kconv.converters.onnx.flavours import STANDARD
from kconv.converters.onnx.graph import Element, Graph
from kconv.converters.onnx.writer import DATA_NAME, write_onnx
from kconv.core.errors import NonFiniteError
from kconv.core.tensor import Array, DType, Tensor
from kconv.quant.formats import F16, FORMATS, Format

NUMBERS = np.random.default_rng(0)


def lazy(name: str, values: Array, dtype: DType = DType.F32) -> Tensor:
    return Tensor(name, values.shape, dtype, lambda start, stop: values[start:stop])


def multiplying(tensors: dict[str, Tensor], formats: dict[str, Format]) -> Graph:
    """Rows times the matrices of some tensors, one after the other."""
    graph = Graph("model", tensors, formats, flavour=STANDARD)
    rows = graph.input("rows", Element.FLOAT, ("n", next(iter(tensors.values())).shape[1]))
    for name in tensors:
        rows = graph.linear(rows, name)
    graph.op("Identity", rows, name="result")
    graph.output("result", Element.FLOAT, ("n", list(tensors.values())[-1].shape[0]))
    return graph


def test_onnx_reads_every_weight_back(tmp_path: Path) -> None:
    one = NUMBERS.standard_normal((3000, 700), np.float32)  # several slabs
    two = NUMBERS.standard_normal((9, 3000), np.float32)
    tensors = {"one": lazy("one", one), "two": lazy("two", two)}
    written = write_onnx({"model.onnx": multiplying(tensors, {"two": F16})}, tmp_path)
    model = onnx.load_model(tmp_path / "model.onnx")
    weights = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert np.array_equal(weights["one"], one)
    assert np.array_equal(weights["two"], two.astype(np.float16))
    assert written.sizes == tuple((tmp_path / name).stat().st_size for name in ("model.onnx", DATA_NAME))


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    bits = NUMBERS.integers(0x3F00, 0x4000, (40, 64)).astype(np.uint16)
    write_onnx({"model.onnx": multiplying({"w": lazy("w", bits, DType.BF16)}, {})}, tmp_path)
    (weight,) = onnx.load_model(tmp_path / "model.onnx").graph.initializer
    assert np.array_equal(numpy_helper.to_array(weight), (bits.astype(np.uint32) << 16).view(np.float32))


@pytest.mark.parametrize("name", ["f32", "f16", "q8_0", "q4_0"])
def test_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path, name: str) -> None:
    tensors = {f"{i}": lazy(f"{i}", NUMBERS.standard_normal((1600, 1600), np.float32)) for i in range(3)}
    graph = multiplying(tensors, dict.fromkeys(tensors, FORMATS[name]))
    for threads in (1, 3):
        (tmp_path / str(threads)).mkdir()
        write_onnx({"model.onnx": graph}, tmp_path / str(threads), threads=threads)
    for file in ("model.onnx", DATA_NAME):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()


def test_graphs_share_what_both_use(tmp_path: Path) -> None:
    tensors = {name: lazy(name, NUMBERS.standard_normal((64, 64), np.float32)) for name in "abc"}
    first = multiplying({name: tensors[name] for name in "ab"}, {})
    second = multiplying({name: tensors[name] for name in "bc"}, {})
    write_onnx({"first.onnx": first, "second.onnx": second}, tmp_path)
    assert (tmp_path / DATA_NAME).stat().st_size == 3 * 64 * 64 * 4  # whole pages, as it happens
    for file, names in (("first.onnx", "ab"), ("second.onnx", "bc")):
        for each in onnx.load_model(tmp_path / file).graph.initializer:
            assert each.name in names
            assert np.array_equal(numpy_helper.to_array(each), tensors[each.name].read(0, 64))


def test_parts_begin_on_pages(tmp_path: Path) -> None:
    tensors = {str(i): lazy(str(i), NUMBERS.standard_normal((7, 7), np.float32)) for i in range(3)}
    write_onnx({"model.onnx": multiplying(tensors, {})}, tmp_path)
    bare = onnx.load_model(tmp_path / "model.onnx", load_external_data=False)
    places = [{e.key: e.value for e in each.external_data} for each in bare.graph.initializer]
    assert [int(place["offset"]) for place in places] == [0, 4096, 8192]
    assert {(place["location"], place["length"]) for place in places} == {(DATA_NAME, "196")}


@pytest.mark.parametrize(("harm", "format"), [(np.nan, "f32"), (np.inf, "q4_0"), (1e6, "f16")])
def test_harmful_weights_are_refused(tmp_path: Path, harm: float, format: str) -> None:
    values = NUMBERS.standard_normal((8, 32), np.float32)
    values[3, 3] = harm
    graph = multiplying({"w": lazy("w", values)}, {"w": FORMATS[format]})
    with pytest.raises(NonFiniteError, match=r"^w: "):
        write_onnx({"model.onnx": graph}, tmp_path)


def test_weights_that_are_not_finite_pass_when_allowed(tmp_path: Path) -> None:
    values = np.full((2, 32), np.inf, np.float32)
    graph = multiplying({"w": lazy("w", values)}, {})
    written = write_onnx({"model.onnx": graph}, tmp_path, allow_nan=True)
    assert written.not_finite == ("w",)
    assert (tmp_path / DATA_NAME).read_bytes() == values.tobytes()
