"""Folders `to_onnx` makes: proven whole, run token for token like transformers and like the GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from command_material import kconv
from transformers import T5ForConditionalGeneration

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.flows.to_onnx import to_onnx
from kconv.verify import verify

pytestmark = pytest.mark.usefixtures("kconv_server")
FAMILIES = ("42dot", "kogpt", "kebyt5", "gbst-kebyt5")
Make = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A folder of a family and type, made once."""
    place = tmp_path_factory.mktemp("families")

    def make(family: str, kind: str) -> Path:
        checkpoint, folder = place / family, place / f"{family}-{kind}"
        if not checkpoint.exists():
            write_sample(family, checkpoint)
        if not folder.exists():
            to_onnx(checkpoint, folder, type=kind, verify=False, threads=1)
        return folder

    return make


def checkpoint_of(folder: Path) -> Path:
    return folder.with_name(folder.name.rpartition("-")[0])


def answered(artifact: Path, *arguments: object) -> dict[str, Any]:
    done = kconv("run", artifact, *arguments, "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.mark.parametrize("kind", ["f32", "q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_the_proof_passes(made: Make, family: str, kind: str) -> None:
    folder = made(family, kind)
    proof = verify(folder, checkpoint_of(folder), tokens=80, threads=1)
    verdicts = {name: part.verdict for name, part in proof.parts.items()}
    assert verdicts == dict.fromkeys(proof.parts, "passed")
    assert proof.type == kind
    assert {error.state for error in proof.weights.tensors} == {"identical"}
    assert proof.logits.stepwise is not None
    if kind == "f32":
        assert proof.logits.stepwise.nmse < 1e-10


@pytest.mark.parametrize("family", ["kebyt5", "gbst-kebyt5"])
def test_masks_are_filled_as_in_llama_cpp(made: Make, family: str) -> None:
    folder = made(family, "f32")
    gguf = folder.with_name(f"{family}.gguf")
    to_gguf(checkpoint_of(folder), gguf, types=["f32"], verify=False)
    asked = ("--fill", "옛날에 <extra_id_0> 소금 장수가 <extra_id_1>.", "-n", 48)
    ours, theirs = answered(folder, *asked), answered(gguf, *asked, "--kv-type", "f32")
    for name in ("prompt_ids", "ids", "fills", "completed"):
        assert ours[name] == theirs[name]


def test_a_gbst_encoder_reads_more_bytes_than_its_context_has_positions(made: Make) -> None:
    answer = answered(made("gbst-kebyt5", "f32"), "-p", "가" * 800, "-n", 2)  # three bytes each
    assert len(answer["prompt_ids"]) == 2401


def test_an_encoder_decoder_says_what_transformers_makes_it_say(made: Make) -> None:
    folder = made("kebyt5", "f32")
    answer = answered(folder, "-p", "호랑이가 소금 장수를 만나", "-n", 64)
    model = T5ForConditionalGeneration.from_pretrained(checkpoint_of(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        ids = torch.tensor([answer["prompt_ids"]])
        right = model.generate(ids, max_new_tokens=64, do_sample=False, num_beams=1)[0, 1:].tolist()
    assert answer["ids"] == right


def test_each_graph_of_transformers_js_is_held_against_the_checkpoint(made: Make, tmp_path: Path) -> None:
    checkpoint, folder = checkpoint_of(made("kebyt5", "f32")), tmp_path / "js"
    to_onnx(checkpoint, folder, type="q8_0", layout="transformers.js", verify=False, threads=1)
    proof = verify(folder, checkpoint, tokens=40, threads=1)
    assert (proof.verdict, proof.type) == ("passed", "q8_0")
    assert {error.state for error in proof.weights.tensors} == {"identical"}
    for graph in ("encoder_model", "decoder_model_merged"):
        data = np.memmap(folder / "onnx" / f"{graph}_quantized.onnx_data", np.uint8, "r+")
        data[0] ^= 1
        data.flush()
    differs = [
        each
        for each in verify(folder, checkpoint, tokens=8, threads=1).weights.tensors
        if each.state == "differs"
    ]
    assert len(differs) == 2


@pytest.mark.parametrize(("kind", "part"), [("f32", ""), ("q8_0", ".scales"), ("q4_0", ".blocks")])
def test_one_other_number_is_found_by_name(made: Make, tmp_path: Path, kind: str, part: str) -> None:
    folder = Path(shutil.copytree(made("42dot", kind), tmp_path / "copy"))
    name = "model.layers.1.mlp.up_proj.weight"
    model = onnx.load_model(folder / "model.onnx", load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.name == name + part)
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = int(entries["offset"]) + 3 * int(entries["length"]) // tensor.dims[0]  # the first number of row 3
    data = np.memmap(folder / entries["location"], np.uint8, "r+")
    data[place + (1 if part != ".blocks" else 0)] ^= 1
    data.flush()
    weights = verify(folder, checkpoint_of(made("42dot", kind)), tokens=8, threads=1).weights
    assert weights.verdict == "failed"
    wrong = [error for error in weights.tensors if error.state == "differs"]
    assert [error.name for error in wrong] == [name]
    assert name in weights.findings[0].message
    assert wrong[0].layer == 1
