"""Half precision as it will run: models that overflow in it, and models just below, in both runtimes."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from llama_material import random_llama
from onnx.reference import ReferenceEvaluator
from safetensors.torch import load_file, save_file
from t5_material import random_byt5

from kconv.converters import to_gguf, to_onnx
from kconv.converters.families import family_for
from kconv.converters.samples.decoders import write_gpt_neox, write_qwen3_moe
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import DType
from kconv.core.windows import Window
from kconv.reference.magnitudes import HEAD
from kconv.reference.model import Reference
from kconv.reference.watching import Watch
from kconv.runtimes.half_precision import LARGEST, NEAR
from kconv.verify import verify

Change = Callable[[dict[str, torch.Tensor]], None]
NORM, GATE, UP = "post_attention_layernorm.weight", "mlp.gate_proj.weight", "mlp.up_proj.weight"


def changed(folder: Path, change: Change) -> Path:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    return folder


def scaled(layer: int, power: int) -> Change:
    """What flows into the feed-forward matrices of a layer times 2^power, and the model computes the same."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        at = f"model.layers.{layer}."
        tensors[at + NORM] *= 2.0**power
        for name in (GATE, UP):
            tensors[at + name] *= 2.0**-power

    return change


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path) -> Path:
    """A Llama stored as F16 whose norm in layer 1 gives magnitudes that are known: see ``power``."""
    return random_llama(tmp_path_factory.mktemp("plain") / "checkpoint", small_tokenizer, dtype="float16")


@pytest.fixture(scope="module")
def power(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """The largest power of two by which layer 1 can be scaled within half precision."""
    made = to_gguf(plain, tmp_path_factory.mktemp("plain-f16"), types=["f16"], threads=2)
    halves = made.proofs[0].logits.half_precision
    assert halves is not None
    assert halves.out is None
    assert halves.near == ()
    assert made.verdict == "passed"
    # a file of this one change alone says how large the input of these matrices is
    folder = tmp_path_factory.mktemp("measured") / "checkpoint"
    shutil.copytree(plain, folder)
    made = to_gguf(changed(folder, scaled(1, 8)), folder.parent / "made", types=["f16"], threads=2)
    halves = made.proofs[0].logits.half_precision
    assert halves is not None
    assert halves.into.matrix in ("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")
    return 8 + math.floor(math.log2(LARGEST / halves.into.value))


@pytest.fixture(scope="module")
def below(plain: Path, power: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, whose inputs almost fill half precision in layer 1."""
    folder = tmp_path_factory.mktemp("below") / "checkpoint"
    shutil.copytree(plain, folder)
    return changed(folder, scaled(1, power))


@pytest.fixture(scope="module")
def beyond(plain: Path, power: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model, whose inputs exceed half precision in layer 1."""
    folder = tmp_path_factory.mktemp("beyond") / "checkpoint"
    shutil.copytree(plain, folder)
    return changed(folder, scaled(1, power + 1))


def test_llama_cpp_overflows_and_the_proof_names_layer_and_matrix(beyond: Path, tmp_path: Path) -> None:
    made = to_gguf(beyond, tmp_path, types=["f16"])
    part = made.proofs[0].logits
    assert part.figures is not None
    assert part.figures.not_finite is not None
    assert part.figures.not_finite.file
    assert not part.figures.not_finite.checkpoint
    first = part.findings[0]
    assert first.grave
    assert first.where in ("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight")
    assert first.message.startswith(f"layer 1, {first.where}: what flows into it reaches ")
    assert "onnxruntime" not in first.message
    halves = part.half_precision
    assert halves is not None
    assert LARGEST < halves.into.value < 2 * LARGEST
    window, position = halves.into.window, halves.into.position
    assert f"(window {window + 1}, position {position + 1})" in first.message
    # from that position on nothing is a number any more
    assert (part.figures.not_finite.window, part.figures.not_finite.position) <= (window, position)
    assert made.verdict == "failed"
    json = made.proofs[0].to_json()["logits"]["half_precision"]
    assert json["into"]["value"] == halves.into.value
    assert json["into"]["matrix"] == halves.into.matrix


def test_just_below_warns_and_llama_cpp_computes_it(below: Path, tmp_path: Path) -> None:
    made = to_gguf(below, tmp_path, types=["f16"])
    part = made.proofs[0].logits
    assert part.figures is not None
    assert part.figures.not_finite is None
    assert part.half_precision is not None
    assert LARGEST / 2 < part.half_precision.into.value <= LARGEST
    warnings = [finding for finding in part.findings if finding.where.startswith("blk.1.ffn_")]
    assert len(warnings) == 2
    assert not any(finding.grave for finding in warnings)
    assert "not far from 65,504, where half precision ends" in warnings[0].message
    assert made.verdict == "warned"


def test_single_matrices_of_a_quantized_file_are_looked_at_and_no_others(
    beyond: Path, tmp_path: Path
) -> None:
    made = to_gguf(beyond, tmp_path, types=["q8_0"], tensor_types=["ffn_down=f16"])
    halves = made.proofs[0].logits.half_precision
    assert halves is not None
    assert halves.matrices == 2
    assert halves.into.matrix.endswith("ffn_down.weight")
    assert halves.near == ()
    made = to_gguf(beyond, tmp_path / "up", types=["q8_0"], tensor_types=["ffn_up=f16"])
    part = made.proofs[0].logits
    assert [each.matrix for each in part.half_precision.near] == ["blk.1.ffn_up.weight"]  # type: ignore[union-attr]
    assert part.findings[0].where == "blk.1.ffn_up.weight"
    assert made.verdict == "failed"
    for kind in ("q8_0", "bf16"):
        made = to_gguf(beyond, tmp_path / kind, types=[kind])
        assert made.proofs[0].logits.half_precision is None


def evaluated(folder: Path) -> Any:
    """Logits by onnx's own evaluator, which computes FLOAT16 as FLOAT16."""
    model = onnx.load(str(folder / "model.onnx"))
    ids = np.arange(3, 67)[None]
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(64)[None]}
    for value in model.graph.input:
        if value.name.startswith("past"):
            shape = value.type.tensor_type.shape.dim
            given[value.name] = np.zeros((1, shape[1].dim_value, 0, shape[3].dim_value), np.float32)
    return ReferenceEvaluator(model).run(["logits"], given)[0]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where halves overflow
def test_onnxruntime_hides_what_the_proof_tells(beyond: Path, below: Path, tmp_path: Path) -> None:
    failed, warned = (to_onnx(each, tmp_path / each.parent.name, type="f16") for each in (beyond, below))
    assert failed.proof is not None
    assert warned.proof is not None
    assert np.isnan(evaluated(failed.path)).any()
    assert np.isfinite(evaluated(warned.path)).all()
    part = failed.proof.logits
    assert part.figures is not None
    assert part.figures.not_finite is None
    assert part.figures.same_top1 > 0.99
    grave = [finding for finding in part.findings if finding.grave]
    assert {finding.where for finding in grave} == {f"model.layers.1.{name}" for name in (GATE, UP)}
    assert "layer 1, " in grave[0].message
    assert "onnxruntime on x86 hides it" in grave[0].message
    assert (failed.proof.verdict, warned.proof.verdict) == ("failed", "warned")
    halves = part.half_precision
    assert halves is not None
    assert halves.out is not None
    assert halves.matrices == 15
    again = verify(failed.path, beyond, tokens=200)
    assert again.logits.verdict == "failed"
    assert again.cause is not None
    assert "layer 1" in again.cause


def test_products_count_in_onnx_alone(plain: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        # products of a matrix that are multiplied by next to nothing before they go on
        at = "model.layers.0.mlp."
        tensors[at + "up_proj.weight"] *= 2.0**15
        tensors[at + "gate_proj.weight"].fill_(2.0**-14)

    folder = tmp_path / "checkpoint"
    shutil.copytree(plain, folder)
    changed(folder, change)
    (proof,) = to_gguf(folder, tmp_path / "gguf", types=["f16"]).proofs
    assert proof.logits.half_precision is not None
    assert proof.logits.half_precision.near == ()
    assert proof.logits.figures is not None
    assert proof.logits.figures.not_finite is None
    made = to_onnx(folder, tmp_path / "onnx", type="f16")
    assert made.proof is not None
    halves = made.proof.logits.half_precision
    assert halves is not None
    assert halves.out is not None
    assert halves.out.value > LARGEST > NEAR > halves.into.value
    first = made.proof.logits.findings[0]
    assert first.where == "model.layers.0.mlp.up_proj.weight"
    assert "what flows out of it reaches" in first.message
    assert made.proof.verdict == "failed"


def test_a_folder_with_names_of_its_own_is_taken_to_compute_all_in_halves(
    beyond: Path, tmp_path: Path
) -> None:
    made = to_onnx(beyond, tmp_path / "own", type="f16", verify="off")
    model = onnx.load(str(made.path / "model.onnx"))
    names = {each.name: f"w{at}" for at, each in enumerate(model.graph.initializer)}
    for each in model.graph.initializer:
        each.name = names[each.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    (made.path / "model.onnx_data").unlink()
    (made.path / "kconv.manifest.json").unlink()
    onnx.save(model, str(made.path / "model.onnx"), save_as_external_data=True, location="model.onnx_data")
    part = verify(made.path, beyond, tokens=100).logits
    assert part.half_precision is not None
    assert part.half_precision.matrices == 15
    assert part.verdict == "failed"
    assert part.findings[0].where.startswith("model.layers.1.mlp.")


class Begun:
    """Progress that counts how often reading the checkpoint in fp32 begins."""

    def __init__(self) -> None:
        self.readings = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.readings += stage == "reference" and done == 0


def test_auto_takes_f32_for_gguf_says_so_and_reads_once(beyond: Path, plain: Path, tmp_path: Path) -> None:
    counts, said = Begun(), list[str]()
    made = to_gguf(beyond, tmp_path, types=["auto", "q8_0"], progress=counts, announce=said.append)
    assert [output.type for output in made.outputs] == ["f32", "q8_0"]
    assert [proof.logits.half_precision for proof in made.proofs] == [None, None]
    (note,) = (note for note in made.notes if note.name == "auto-type")
    assert note.message.startswith("auto is F32 here, not F16: layer 1, blk.1.ffn_")
    assert counts.readings == 1
    assert said[0].startswith("auto: is half precision wide enough?")
    assert sorted(path.name for path in tmp_path.glob("*.gguf")) == [
        "checkpoint-F32.gguf",
        "checkpoint-Q8_0.gguf",
    ]
    counts = Begun()
    made = to_gguf(plain, tmp_path / "plain", progress=counts)
    assert [output.type for output in made.outputs] == ["f16"]
    assert counts.readings == 1
    assert not any(note.name == "auto-type" for note in made.notes)
    made = to_gguf(beyond, tmp_path / "unproven", verify="off")
    assert [output.type for output in made.outputs] == ["f16"]


def test_auto_near_the_end_takes_f32_too(below: Path, tmp_path: Path) -> None:
    made = to_gguf(below, tmp_path)
    assert [output.type for output in made.outputs] == ["f32"]
    assert made.verdict == "passed"


def test_auto_takes_f32_for_onnx_says_so_and_reads_once(beyond: Path, plain: Path, tmp_path: Path) -> None:
    counts, once = Begun(), Begun()
    made = to_onnx(beyond, tmp_path / "wide", progress=counts)
    assert made.type == "f32"
    assert made.proof is not None
    assert made.proof.verdict == "passed"
    (note,) = (note for note in made.notes if note.name == "auto-type")
    assert f"model.layers.1.{GATE}" in note.message or f"model.layers.1.{UP}" in note.message
    given = to_onnx(beyond, tmp_path / "given", type="f32", progress=once)
    assert counts.readings == once.readings
    assert given.proof is not None
    assert to_onnx(plain, tmp_path / "plain").type == "f16"


def test_experts_are_named_by_their_matrix(tmp_path: Path) -> None:
    folder = write_qwen3_moe(tmp_path / "checkpoint", dtype=DType.F16)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        at = "model.layers.1."
        tensors[at + NORM] *= 2.0**14
        for name in tensors:
            if name.startswith(f"{at}mlp.") and "down" not in name:
                tensors[name] *= 2.0**-14

    made = to_gguf(changed(folder, change), tmp_path / "made", types=["f16"])
    part = made.proofs[0].logits
    assert part.figures is not None
    assert part.figures.not_finite is not None
    where = {finding.where for finding in part.findings if finding.grave}
    assert {"blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"} <= where
    assert "blk.1.ffn_down_exps.weight" not in where


def test_encoders_are_told_from_decoders(tmp_path: Path) -> None:
    folder = random_byt5(tmp_path / "checkpoint")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        at = "encoder.block.0.layer.1."
        tensors[at + "layer_norm.weight"] *= 2.0**17
        for name in tensors:
            if name.startswith(f"{at}DenseReluDense.wi"):
                tensors[name] *= 2.0**-17

    made = to_gguf(changed(folder, change), tmp_path / "made", types=["f16"])
    findings = [finding for finding in made.proofs[0].logits.findings if finding.where.startswith("enc.")]
    assert findings
    assert all(finding.grave for finding in findings)
    assert findings[0].message.startswith("encoder layer 0, enc.blk.0.ffn_")


def matrices_by_hand(folder: Path, windows: list[Window]) -> Mapping[str, float]:
    """The largest magnitude into every module, by the hooks importance data are counted with."""
    found: dict[str, float] = {}
    checkpoint = open_checkpoint(folder)
    reference = Reference(checkpoint, family_for(checkpoint.config))
    names = {name for name in reference.read(windows).magnitudes.flows if name != HEAD}
    # experts are watched where the first of a layer is, whether or not a token went there
    names |= {f"model.layers.{layer}.mlp.experts.0.gate_proj" for layer in range(8)}

    def observe(name: str, window: int, values: Any) -> None:
        found[name] = max(found.get(name, 0.0), float(np.abs(values).max()))

    reference.read([], watch=Watch(tuple(windows), frozenset(names), observe))
    return found


@pytest.mark.parametrize("by_layer", [False, True])
@pytest.mark.parametrize("make", [write_qwen3_moe, write_gpt_neox, random_byt5])
def test_peaks_are_those_of_every_position_and_of_no_padding(
    make: Callable[[Path], Path], by_layer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kconv.reference.batches._TOKENS", 80)  # several batches, padded
    folder = make(tmp_path / "checkpoint")
    random = np.random.default_rng(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(random.integers(3, 250, count).tolist())

    sized = ((20, 9), (33, 14), (7, 30), (40, 5))
    windows = [Window(0, ids(n), source=ids(m) if make is random_byt5 else ()) for n, m in sized]
    checkpoint = open_checkpoint(folder)
    reading = Reference(checkpoint, family_for(checkpoint.config)).read(windows, by_layer=by_layer)
    flows = reading.magnitudes.flows
    for window, values in enumerate(reading.hidden):
        reading.logits(window, 0, len(values))
    hand = matrices_by_hand(folder, windows)
    assert set(flows) - {HEAD} >= set(hand)
    matrices = {
        name for name in flows if "mlp.gate" not in name and "norm" not in name
    }  # no routers, no norms
    assert matrices - {HEAD} <= set(hand)
    for name, value in hand.items():
        assert flows[name].into.value == pytest.approx(value, rel=1e-5), name
    head = reading.magnitudes.flows[HEAD]
    assert head.into.value == max(float(np.abs(values).max()) for values in reading.hidden)
    logits = [reading.logits(at, 0, len(values)) for at, values in enumerate(reading.hidden)]
    assert head.out.value == pytest.approx(max(float(np.abs(each).max()) for each in logits), rel=1e-5)
    assert abs(logits[head.out.window][head.out.position]).max() == pytest.approx(head.out.value, rel=1e-5)
