"""``--activations f16``: what flows through a decoder's graph and its cache are FLOAT16, and it is proven."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_causal_material import Floats, Ids
from safetensors.torch import load_file, save_file

from kconv.converters import to_onnx
from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.onnx.flavours import FLAVOURS, STANDARD
from kconv.converters.onnx.formats import choose_onnx_formats
from kconv.converters.onnx.graphs import graphs_of
from kconv.converters.onnx.writer import write_onnx
from kconv.converters.samples import SAMPLES, write_sample
from kconv.core.errors import UsageError
from kconv.core.reading import open_checkpoint

LENGTH, STEPS = 40, 3
FAMILIES = ("42dot", "mpt", "gemma2", "qwen3-moe", "xglm", "exaone4")
"""Rotations, slopes, caps with windows, experts, sines, norms behind."""
CLOSE = 1e-5
"""Of the NMSE of logits; halves have 11 bits, of which what flows through a layer loses little."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    place = tmp_path_factory.mktemp("samples")

    def made(name: str) -> Path:
        return place / name if (place / name).exists() else write_sample(name, place / name)

    return made


def written(checkpoint: Path, folder: Path, flavour: str, type: str, *, halves: bool) -> Path:
    """The graph of a checkpoint, with its weights in a new folder."""
    opened = open_checkpoint(checkpoint)
    family = family_for(opened.config)
    formats = choose_onnx_formats(family, opened, build(family, opened, "ONNX"), type, halves=halves).formats
    folder.mkdir(parents=True)
    write_onnx(
        graphs_of(family, opened, formats, flavour=FLAVOURS[flavour], halves=halves), folder, threads=1
    )
    return folder / "model.onnx"


def session(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def empty(model: Any, batch: int, kind: type[np.floating[Any]]) -> dict[str, Any]:
    pasts = [each for each in model.get_inputs() if each.name.startswith("past")]
    return {each.name: np.zeros((batch, each.shape[1], 0, each.shape[3]), kind) for each in pasts}


def read(model: Any, ids: Ids, past: dict[str, Any], mask: Ids) -> tuple[Floats, dict[str, Any]]:
    """Logits, and the cache, which must have the type it was given in."""
    places = np.maximum(mask.cumsum(1) - 1, 0)[:, -ids.shape[1] :]
    names = [each.name for each in model.get_outputs()]
    given = {"input_ids": ids, "attention_mask": mask, "position_ids": places, **past}
    values = dict(zip(names, model.run(names, given), strict=True))
    logits = values.pop("logits")
    assert logits.dtype == np.float32
    present = {name.replace("present", "past_key_values"): each for name, each in values.items()}
    assert {each.dtype for each in present.values()} == {each.dtype for each in past.values()}
    return logits, present


def ways(model: Any, ids: Ids, kind: type[np.floating[Any]]) -> list[Floats]:
    """At once, then single tokens behind the cache; two texts, one of them padded on the left."""
    ones = np.ones_like(ids)
    before, past = read(model, ids[:, :-STEPS], empty(model, 1, kind), ones[:, :-STEPS])
    logits = [before]
    for place in range(LENGTH - STEPS, LENGTH):
        step, past = read(model, ids[:, place : place + 1], past, ones[:, : place + 1])
        logits.append(step)
    mask = np.ones((2, LENGTH), np.int64)
    mask[1, : LENGTH // 2] = 0
    both, _ = read(model, np.concatenate([ids, ids]), empty(model, 2, kind), mask)
    return [np.concatenate(logits, axis=1), both[:1], both[1:, LENGTH // 2 :]]


def nmse(found: Floats, wanted: Floats) -> float:
    return float(np.mean((found - wanted) ** 2) / np.mean(wanted**2))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("family", FAMILIES)
def test_halves_give_what_floats_give(
    family: str, flavour: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    ids = np.random.default_rng(0).integers(3, 200, (1, LENGTH))
    graphs = {
        halves: written(checkpoint(family), tmp_path / str(halves), flavour, "f16", halves=halves)
        for halves in (False, True)
    }
    exact, rounded = (
        ways(session(graphs[halves]), ids, kind) for halves, kind in ((False, np.float32), (True, np.float16))
    )
    for found, wanted in zip(rounded, exact, strict=True):
        assert nmse(found, wanted) < CLOSE
    model = onnx.load(graphs[True], load_external_data=False)
    assert not [
        each.name
        for each in model.graph.initializer
        if each.dims and each.data_type == 1 and each.external_data
    ]
    tied = {node.op_type for node in model.graph.node} & {"Gemm", "MatMul"}
    assert tied == {"Gemm"} or family == "gemma2"  # composed there


@pytest.mark.parametrize("family", ["42dot", "mpt", "gemma2"])
def test_onnx_itself_computes_the_same_in_halves(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """In numpy, where halves are computed as halves; onnxruntime on x86 computes them as F32."""
    path = written(checkpoint(family), tmp_path / "made", STANDARD.name, "f16", halves=True)
    ids = np.random.default_rng(1).integers(3, 200, (1, 12))
    opened, ones = session(path), np.ones_like(ids)
    past = empty(opened, 1, np.float16)
    given = {"input_ids": ids, "attention_mask": ones, "position_ids": np.arange(12)[None], **past}
    (found,) = ReferenceEvaluator(onnx.load(path)).run(["logits"], given)
    assert nmse(found, read(opened, ids, past, ones)[0]) < CLOSE


@pytest.mark.parametrize(
    ("family", "flavour", "type"),
    [("42dot", "contrib", "q4_0"), ("42dot", "standard", "q8_0"), ("gpt2", "contrib", "f16")],
)
def test_a_folder_is_proven(
    family: str, flavour: str, type: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    made = to_onnx(
        checkpoint(family),
        into=tmp_path,
        type=type,
        flavour=flavour,
        layout="transformers.js" if type == "q4_0" else "optimum",
        activations="f16",
        threads=1,
    )
    assert made.path.name.endswith(f"-{type.upper()}-F16-ONNX")
    assert made.proof is not None
    assert made.proof.runtime.verdict == "passed"
    assert {each.state for each in made.proof.weights.tensors} == {"identical"}
    assert made.proof.logits.half_precision is not None
    assert made.proof.logits.half_precision.into.fits
    assert made.proof.verdict == "passed"
    manifest = json.loads((made.path / "kconv.manifest.json").read_text("utf-8"))
    assert manifest["options"]["activations"] == "f16"
    if type == "q4_0":
        config = json.loads((made.path / "config.json").read_text("utf-8"))
        assert config["transformers.js_config"]["kv_cache_dtype"] == {"q4f16": "float16"}
        assert (made.path / "onnx" / "model_q4f16.onnx").is_file()


def test_a_sum_of_layers_beyond_halves_fails(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Two layers add 40,000 each: no matrix has more in or out, and the sum reaches the next norm."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoint("gpt2"), folder)
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    for layer in (0, 1):
        (bias,) = (name for name in tensors if name.endswith(f"h.{layer}.mlp.c_proj.bias"))
        tensors[bias][0] = 40000
    save_file(tensors, file, {"format": "pt"})
    given: dict[str, Any] = {"type": "q8_0", "threads": 1}
    plain, made = (
        to_onnx(folder, tmp_path / each, activations=each, **given).proof for each in ("f32", "f16")
    )
    assert plain is not None
    assert made is not None
    assert (plain.logits.half_precision, made.verdict) == (None, "failed")
    halves = made.logits.half_precision
    assert halves is not None
    assert halves.out is not None
    assert halves.out.fits
    assert not halves.into.fits
    assert "h.2.ln_1.weight" in halves.into.matrix
    assert any("onnxruntime on x86 hides it" in each.message for each in made.logits.findings if each.grave)


def test_what_halves_are_not_for_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="f32 weights do not go together"):
        to_onnx(checkpoint("42dot"), tmp_path / "made", type="f32", activations="f16")
    for family in ("kebyt5", "bert"):
        with pytest.raises(UsageError, match="models that only decode"):
            to_onnx(checkpoint(family), tmp_path / "made", activations="f16")
    with pytest.raises(UsageError, match="unknown type 'bf16' for activations"):
        to_onnx(checkpoint("42dot"), tmp_path / "made", activations="bf16")
    assert not (tmp_path / "made").exists()
    assert set(FAMILIES) <= set(SAMPLES)
