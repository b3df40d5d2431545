"""What llama.cpp multiplies each matrix by, computed again: equal in right files, not in wrong ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from damage_material import DAMAGES

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.samples import write_sample
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.quant.gguf_weights import open_gguf
from kconv.reference.recompute import Recomputation, Recomputed
from kconv.runtimes.llama_reader import LlamaReader
from kconv.verify.recomputed import LIMIT, limit_of

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_1", "q4_k_m", "q2_k", "iq4_xs", "iq4_nl")
SAMPLES = ("42dot", "kogpt", "kebyt5", "qwen3", "qwen3-moe", "gpt-neox", "exaone4", "exaone", "hyperclovax")
IDS = tuple(int(i) for i in np.random.default_rng(5).integers(3, 250, 48))


@pytest.fixture(scope="module", params=SAMPLES)
def sample(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample(request.param, tmp_path_factory.mktemp("sample") / request.param)


def recomputed(path: Path, checkpoint: Path, ids: tuple[int, ...] = IDS, **reading: int) -> Recomputed:
    """A file's inputs and logits in llama.cpp, computed again."""
    opened = open_checkpoint(checkpoint)
    family = family_for(opened.config)
    window = Window(0, ids, source=IDS if family.encoder_decoder else ())
    with open_gguf(path) as file, LlamaReader(path, **{"threads": 2, **reading}) as reader:
        inputs, logits = reader.matrix_inputs(window)
        return Recomputation.of_gguf(opened, family, file, threads=2).compute(window, inputs, logits)


def test_every_type_of_every_family_is_computed_to_the_last_digits(sample: Path, tmp_path: Path) -> None:
    family = family_for(open_checkpoint(sample).config)
    for made in to_gguf(sample, tmp_path, types=TYPES, verify=False).outputs:
        found = recomputed(made.path, sample)
        assert not found.unused
        for each in found.errors:
            assert each.nmse < limit_of(each.matrix, gelu=family.gelu) / 20, (made.type, each)


@pytest.mark.parametrize(("batch", "threads"), [(1, 1), (7, 4), (8, 3), (512, 1)])
def test_and_with_other_threads_and_batches(
    batch: int, threads: int, demo: Path, files: dict[str, Path]
) -> None:
    for type_ in ("f16", "q4_k_m"):
        found = recomputed(files[type_], demo, threads=threads, batch=batch)
        assert max(each.nmse for each in found.errors) < LIMIT / 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("42dot", tmp_path_factory.mktemp("demo") / "42dot")


@pytest.fixture(scope="module")
def files(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = to_gguf(demo, tmp_path_factory.mktemp("files"), types=TYPES, verify=False).outputs
    return {type_: output.path for type_, output in zip(TYPES, made, strict=True)}


@pytest.mark.parametrize("type_", ["f32", "f16", "q4_k_m", "q4_0", "iq4_xs"])
@pytest.mark.parametrize(
    ("damage", "first"),
    [
        ("wrong norm epsilon", "blk.0.attn_q.weight"),
        ("wrong rope theta", "blk.0.attn_output.weight"),
        ("wrong head split", "blk.0.attn_output.weight"),
    ],
)
def test_what_the_graph_computes_otherwise_is_found_where_it_begins(
    damage: str, first: str, type_: str, demo: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    path = DAMAGES[damage].make(files[type_], tmp_path / "damaged.gguf")
    errors = recomputed(path, demo).errors
    wrong = next((each for each in errors if each.nmse > LIMIT), None)
    assert wrong is not None, max(each.nmse for each in errors)
    assert wrong.matrix in (first, first.replace("attn_q", "attn_k"), first.replace("attn_q", "attn_v"))


def test_the_free_copies_tell_what_weights_and_inputs_cost(demo: Path, files: dict[str, Path]) -> None:
    exact = recomputed(files["f32"], demo)
    assert np.array_equal(exact.weights_only, exact.rounded)
    coarse = recomputed(files["q4_0"], demo)
    by_weights = np.abs(coarse.weights_only - exact.weights_only).max()
    by_inputs = np.abs(coarse.rounded - coarse.weights_only).max()
    assert 0 < by_inputs < by_weights
