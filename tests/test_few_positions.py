"""Products with few positions: the kernel against numpy in float64, and proofs computed with it."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from damage_material import DAMAGES
from llama_material import random_llama
from vocab_material import dot42_like

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.quant import few_positions, native
from kconv.quant.gguf_weights import open_gguf
from kconv.reference import weight_reader
from kconv.reference.recompute import Recomputation, Recomputed
from kconv.reference.torch_library import uncollected
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.recomputed import LIMIT

SHAPES = [(1, 1, 32), (6, 128, 32), (7, 129, 64), (13, 300, 96), (64, 1024, 32)]
IDS = tuple(int(i) for i in np.random.default_rng(5).integers(3, 250, 64))


def with_the_kernel() -> list[str]:
    nothing = np.zeros((0, few_positions.WIDTH), np.float32)
    sets = native.available_sets()
    return [
        each for each in sets if few_positions.multiply(nothing, nothing.reshape(0, 0), nothing, set=each)
    ]


@pytest.mark.parametrize(("rows", "columns", "width"), SHAPES)
def test_a_product_is_that_of_float64_to_the_last_digits(rows: int, columns: int, width: int) -> None:
    random = np.random.default_rng(rows)
    matrix = random.standard_normal((rows, columns), np.float32)
    vectors = random.standard_normal((columns, width), np.float32)
    right = matrix.astype(np.float64) @ vectors.astype(np.float64)
    scale = np.abs(matrix).astype(np.float64) @ np.abs(vectors).astype(np.float64)
    for set in with_the_kernel():
        out = np.full((rows, width), np.nan, np.float32)
        assert few_positions.multiply(vectors, matrix, out, set=set)
        assert (np.abs(out - right) <= 128 * 2.0**-24 * scale).all()


def test_what_is_not_finite_reaches_its_own_row_and_position_alone() -> None:
    matrix, vectors = np.ones((9, 200), np.float32), np.ones((200, 32), np.float32)
    matrix[4, 150], vectors[7, 30] = np.inf, np.nan
    for set in with_the_kernel():
        out = np.empty((9, 32), np.float32)
        few_positions.multiply(vectors, matrix, out, set=set)
        assert np.isnan(out[:, 30]).all()
        assert (out[4, :30] == np.inf).all()
        others = np.delete(np.delete(out, 4, axis=0), 30, axis=1)
        assert (others == 200).all()


@pytest.fixture(scope="module", params=["plain", "biases"])
def wide(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with matrices that are worth multiplying as they are read."""
    settings = {"hidden_size": 512, "intermediate_size": 768, "num_attention_heads": 8}
    settings |= {"num_key_value_heads": 8, "attention_bias": request.param == "biases"}
    folder = tmp_path_factory.mktemp("wide")
    settings["vocab_size"] = dot42_like(folder / "tokenizer")
    return random_llama(folder / "wide", folder / "tokenizer", **settings)


def recomputed(path: Path, checkpoint: Path, positions: int) -> Recomputed:
    opened = open_checkpoint(checkpoint)
    window = Window(0, IDS[:positions])
    with open_gguf(path) as file, LlamaReader(path, threads=2) as reader:
        inputs, logits = reader.matrix_inputs(window)
        again = Recomputation.of_gguf(opened, family_for(opened.config), file, threads=2)
        return again.compute(window, inputs, logits, free=False)


@pytest.mark.parametrize("positions", [1, 32, 50])
def test_a_file_is_computed_again_with_it_to_the_last_digits(
    wide: Path, positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiplied: list[str] = []
    product = weight_reader.WeightReader.product

    def noted(self, values, matrix, bias=None):  # type: ignore[no-untyped-def]
        multiplied.append(matrix.name)
        return product(self, values, matrix, bias)

    monkeypatch.setattr(weight_reader.WeightReader, "product", noted)
    for made in to_gguf(wide, tmp_path, types=("q8_0", "q4_0", "f16"), verify=False).outputs:
        multiplied.clear()
        found = recomputed(made.path, wide, positions)
        assert not found.unused
        assert max(each.nmse for each in found.errors) < LIMIT / 20, made.type
        # all of seven matrices in two layers, and the output matrix
        assert len(multiplied) == (15 if with_the_kernel() else 0)


@pytest.mark.parametrize("damage", ["wrong norm epsilon", "wrong rope theta", "wrong head split"])
def test_and_a_wrong_graph_is_found_where_it_begins(wide: Path, damage: str, tmp_path: Path) -> None:
    (made,) = to_gguf(wide, tmp_path, types=("q4_0",), verify=False).outputs
    errors = recomputed(DAMAGES[damage].make(made.path, tmp_path / "damaged.gguf"), wide, 32).errors
    wrong = next((each.matrix for each in errors if each.nmse > LIMIT), "")
    expected = ("attn_q", "attn_k", "attn_v") if "epsilon" in damage else ("attn_output",)
    assert wrong in {f"blk.0.{name}.weight" for name in expected}


def test_what_is_imported_counts_as_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many_objects.py").write_text("made = [[number] for number in range(20_000)]")
    monkeypatch.syspath_prepend(tmp_path)
    with uncollected():
        name = "many_objects"  # made here, no package
        many_objects = importlib.import_module(name)
    try:
        assert gc.isenabled()
        assert not gc.get_freeze_count()
        young = {id(each) for number in (0, 1) for each in gc.get_objects(generation=number)}
        assert not any(id(each) in young for each in many_objects.made)
    finally:
        del sys.modules["many_objects"]
