"""The command kconv quantize: what it says and refuses, T5 and its front ends, the proof at once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from command_material import kconv, kconv_here
from gbst_material import random_gbswt5
from requantize_material import llama_file, theirs

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.errors import GgufError
from kconv.core.gguf_file import TensorInfo, header_bytes, read_header, tensor_bytes
from kconv.core.gguf_pairs import encode_pairs
from kconv.flows.quantize import quantize
from kconv.quant.policy import parse_policy

pytestmark = pytest.mark.usefixtures("kconv_server")


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return kconv("quantize", *words, cwd=folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama_file(tmp_path_factory.mktemp("source") / "model-F32.gguf")


def test_one_object_of_json(source: Path, tmp_path: Path) -> None:
    done = run(tmp_path, source, "-q", "q4_k_m,Q8_0", "--split-max-size", "200K", "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert [output["type"] for output in answer["outputs"]] == ["q4_K_M", "q8_0"]
    for output in answer["outputs"]:
        assert output["path"] == output["parts"][0]
        assert output["bytes"] == sum((tmp_path / part).stat().st_size for part in output["parts"])
    assert answer["proofs"] == []
    assert answer["architecture"] == "llama"
    made = {part for output in answer["outputs"] for part in output["parts"]}
    manifests = {f"{output['path']}.manifest.json" for output in answer["outputs"]}
    assert {path.name for path in tmp_path.iterdir()} == made | manifests


def not_a_model(path: Path, **keys: str) -> Path:
    writer = gguf.GGUFWriter(path, keys.pop("arch", "llama"))
    for key, value in keys.items():
        writer.add_string(key.replace("_", "."), value)
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 256), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def other_imatrix(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["text.txt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("blk.0.attn_q.weight.in_sum2", np.ones((1, 512), np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


Words = Callable[[Path, Path], list[object]]
REFUSED: dict[str, tuple[Words, int, str]] = {
    "no type": (lambda s, t: [s], 2, "give one with -q"),
    "an empty type": (lambda s, t: [s, "-q", ""], 2, "empty"),
    "an unknown type": (lambda s, t: [s, "-q", "q4_k_n"], 2, "q4_K_M"),
    "one file for two types": (
        lambda s, t: [s, "-q", "q8_0,q4_0", "-o", "x.gguf"],
        2,
        "is the name of one file",
    ),
    "two types of one name": (
        lambda s, t: [s, "-q", "q8_0:attn[_]v=q4_0,q8_0:attn(_)v=q4_0", "--force"],
        2,
        "would both be written to",
    ),
    "a copy with other weights": (lambda s, t: [s, "-q", "copy", "--pure"], 2, "keeps all weights"),
    "a pattern that matches nothing": (
        lambda s, t: [s, "-q", "q8_0", "--tensor-type", "nothing=q4_0"],
        2,
        "matches no matrix",
    ),
    "both ways to split": (
        lambda s, t: [s, "-q", "q8_0", "--keep-split", "--split-max-size", "1M"],
        2,
        "cannot be combined",
    ),
    "the source as output": (lambda s, t: [s, "-q", "q8_0", "-o", s, "--force"], 2, "is the input itself"),
    "what is there already": (
        lambda s, t: [s, "-q", "q8_0", "-o", llama_file(t / "there.gguf")],
        3,
        "already exists",
    ),
    "no such file": (lambda s, t: [t / "none.gguf", "-q", "q8_0"], 3, "cannot read"),
    "a folder": (lambda s, t: [t, "-q", "q8_0"], 3, "is a folder"),
    "no GGUF": (lambda s, t: [Path(__file__), "-q", "q8_0"], 3, "not a GGUF"),
    "an adapter": (
        lambda s, t: [not_a_model(t / "a.gguf", general_type="adapter"), "-q", "q8_0"],
        3,
        "'adapter'",
    ),
    "a front end": (lambda s, t: [not_a_model(t / "a.gguf", arch="gbst"), "-q", "q8_0"], 3, "'gbst'"),
    "importance data needed": (lambda s, t: [s, "-q", "iq2_xxs"], 3, "needs importance data"),
    "importance data of another model": (
        lambda s, t: [s, "-q", "q4_0", "--imatrix", other_imatrix(t / "i.gguf")],
        3,
        "another model",
    ),
    "no importance data": (lambda s, t: [s, "-q", "q4_0", "--imatrix", s], 3, "imatrix"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(source: Path, tmp_path: Path, case: str) -> None:
    words, code, message = REFUSED[case]
    given = words(source, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}, source.read_bytes()
    done = run(tmp_path, *given)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    # what it knows of the source by then, and nothing of files
    known = (f"{source}: ", "note (", "warning (")
    assert [line for line in done.stdout.splitlines() if not line.startswith(known)] == []
    assert ({path.name for path in tmp_path.iterdir()}, source.read_bytes()) == before


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint of GBST-KEByT5 and its body."""
    folder = tmp_path_factory.mktemp("t5")
    checkpoint = random_gbswt5(folder / "small")
    conversion = to_gguf(checkpoint, folder / "body-F32.gguf", types=["f32"], verify="off", threads=1)
    return checkpoint, conversion.outputs[0].path


def test_t5_equals_llama_quantize(t5: tuple[Path, Path], tmp_path: Path) -> None:
    _, body = t5
    types = ("q8_0", "q4_k_m")
    made = quantize(body, tmp_path, types=types, threads=1)
    assert [note.name for note in made.notes if note.name == "front-end"] == ["front-end"]
    for name, output in zip(types, made.outputs, strict=True):
        assert theirs(body, tmp_path / "theirs.gguf", parse_policy(name).file_type)
        assert output.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes(), name


def test_t5_feed_forward_outputs_are_never_f16(t5: tuple[Path, Path], tmp_path: Path) -> None:
    """Unlike llama_model_quantize: what flows into them exceeds half precision."""
    made = quantize(t5[1], tmp_path, types=["f16"], threads=1)
    types = {info.name: info.ggml_type for info in read_header(made.outputs[0].path).tensors}
    assert {number for name, number in types.items() if "ffn_down" in name} == {0}
    assert types["enc.blk.0.attn_q.weight"] == 1
    assert "feed-forward-wo" in [note.name for note in made.notes]


def test_proof_at_once_and_afterwards(tmp_path: Path) -> None:
    """The manifest keeps the checkpoint of the file it was made from, so that others are refused."""
    checkpoint = write_sample("42dot", tmp_path / "small")
    to_gguf(checkpoint, tmp_path / "small-F32.gguf", types=["f32"], verify="off", threads=1)
    words = ("small-F32.gguf", "-q", "q8_0", "--against", "small", "--json", "--threads", "1")
    done = kconv_here("quantize", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    output = json.loads(done.stdout)
    assert [proof["verdict"] for proof in output["proofs"]] == ["passed"]
    manifest = json.loads((tmp_path / "small-Q8_0.gguf.manifest.json").read_text("utf-8"))
    assert {file["name"] for file in manifest["source"]["files"]} >= {"model.safetensors", "config.json"}
    assert [file["name"] for file in manifest["made_from"]] == ["small-F32.gguf"]
    (checkpoint / "config.json").write_text((checkpoint / "config.json").read_text("utf-8") + "\n")
    done = run(tmp_path, "small-Q8_0.gguf", "-q", "q4_0", "--against", "small", "--allow-requantize")
    assert done.returncode == 3
    assert "no longer, the checkpoint that was converted" in done.stderr


def test_what_cannot_be_decoded_is_refused(source: Path, tmp_path: Path) -> None:
    """Whole numbers under the name of a matrix; copying them is fine."""
    data = bytearray(source.read_bytes())
    place = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 2 * 8
    data[place : place + 4] = (26).to_bytes(4, "little")  # I32
    odd = tmp_path / "odd.gguf"
    odd.write_bytes(data)
    with pytest.raises(GgufError, match=r"blk\.0\.attn_q\.weight .* has the type I32"):
        quantize(odd, tmp_path / "made.gguf", types=["q8_0"])
    (made,) = quantize(odd, tmp_path / "made.gguf", types=["copy"]).outputs
    assert theirs(odd, tmp_path / "theirs.gguf", 0, only_copy=True)
    assert made.path.read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize(
    "shape", [(0, 256), (4, 0), (2, 1 << 29)], ids=["no rows", "no columns", "absurd rows"]
)
def test_shapes_no_weights_have_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    info = TensorInfo("blk.0.attn_q.weight", shape, 0, tensor_bytes(shape, 0))
    head = header_bytes(encode_pairs({"general.architecture": "llama"}), [info])
    path = tmp_path / "odd.gguf"
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + info.nbytes)  # a hole takes no room
    with pytest.raises(GgufError, match="has no weights"):
        quantize(path, tmp_path / "made.gguf", types=["q8_0"])
