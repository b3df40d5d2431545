"""Importance in conversions: from a file or learned on the way, recorded, and worth it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imatrix_material import write_with_gguf_py

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.gguf_file import read_header
from kconv.verify import verify

TEXTS = Path(__file__).resolve().parent.parent / "tools" / "demo_texts"
KEYS = ("file", "dataset", "entries_count", "chunks_count")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sample("kogpt", tmp_path_factory.mktemp("sample") / "sample")


@pytest.fixture(scope="module")
def imatrix(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What kconv imatrix makes of the texts the sample was trained on."""
    path = tmp_path_factory.mktemp("imatrix") / "학습.gguf"
    texts = [word for name in ("facts.txt", "stories.txt") for word in ("--text", str(TEXTS / name))]
    assert main(["imatrix", str(folder), *texts, "-o", str(path), "--chunks", "16", "--json"]) == 0
    return path


def _importance_keys(path: Path) -> dict[str, Any]:
    keys = {key: read_header(path).metadata.get(f"quantize.imatrix.{key}") for key in KEYS}
    return {key: value for key, value in keys.items() if value is not None}


def test_importance_lowers_divergence_on_unseen_text(folder: Path, imatrix: Path, tmp_path: Path) -> None:
    """The stories of held_out.txt were never trained on and are not what the importance was learned from."""
    types, unseen = ("q4_k_m", "q2_k"), [(TEXTS / "held_out.txt").read_text("utf-8")]
    for name in types:
        divergences = []
        for given in (None, imatrix):
            target = tmp_path / f"{name}-{given is not None}.gguf"
            to_gguf(folder, target, types=(name,), imatrix=given, verify=False, threads=2)
            proof = verify(target, folder, texts=unseen, threads=2)
            assert proof.weights.verdict == "passed"
            assert proof.logits.figures is not None
            divergences.append(proof.logits.figures.kl_mean)
        assert divergences[1] < divergences[0], (name, divergences)


def test_files_say_what_they_were_made_with(folder: Path, imatrix: Path, tmp_path: Path) -> None:
    """As llama-quantize writes it, and without a folder of this machine."""
    made = to_gguf(folder, tmp_path, types=("q4_k_m", "f16"), imatrix=imatrix, verify=False, threads=2)
    quantized, halves = (output.path for output in made.outputs)
    header = read_header(imatrix)
    matrices = sum(info.name.endswith(".in_sum2") for info in header.tensors)
    chunks = header.metadata["imatrix.chunk_count"]
    entries = {"file": "학습.gguf", "dataset": "facts.txt", "entries_count": matrices, "chunks_count": chunks}
    assert _importance_keys(quantized) == entries
    assert _importance_keys(halves) == {}
    asked = {"types": ("f16",), "tensor_types": ["ffn_down=q4_k"]}
    (mixed,) = to_gguf(folder, tmp_path / "mixed", **asked, imatrix=imatrix, verify=False, threads=2).outputs
    assert _importance_keys(mixed.path) == entries
    assert verify(mixed.path, folder, tokens=16, threads=2).weights.verdict == "passed"
    manifest = json.loads(made.outputs[0].manifest.read_text("utf-8"))
    assert manifest["options"]["imatrix"] == "학습.gguf"
    assert manifest["importance"]["file"] == "학습.gguf"
    assert manifest["importance"]["datasets"] == ["facts.txt", "stories.txt"]
    assert len(manifest["importance"]["sha256"]) == 64
    assert str(imatrix.parent) not in json.dumps(manifest)


def test_calibrating_gives_what_two_steps_give(folder: Path, tmp_path: Path) -> None:
    """The same weights, and the proof finds the same, though the checkpoint was read once for both."""
    text, path = TEXTS / "facts.txt", tmp_path / "imatrix.gguf"
    passes = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "reference" and done == 0:
            passes.append(total)

    at_once = to_gguf(
        folder, tmp_path / "one.gguf", types=("q3_k_m",), calibrate=[text], threads=2, progress=progress
    )
    assert len(passes) == 1
    assert main(["imatrix", str(folder), "--text", str(text), "-o", str(path)]) == 0
    in_two = to_gguf(folder, tmp_path / "two.gguf", types=("q3_k_m",), imatrix=path, threads=2)
    one, two = (read_header(made.outputs[0].path) for made in (at_once, in_two))
    assert one.tensors == two.tensors
    data = [made.outputs[0].path.read_bytes() for made in (at_once, in_two)]
    assert data[0][one.data_offset :] == data[1][two.data_offset :]
    kept = tmp_path / "one.imatrix.gguf"
    importance = _importance_keys(tmp_path / "one.gguf")
    assert importance.keys() == {"file", "dataset", "entries_count", "chunks_count"}
    assert importance["file"] == kept.name
    manifest = json.loads((tmp_path / "one.gguf.manifest.json").read_text("utf-8"))
    assert manifest["importance"]["sha256"] == hashlib.sha256(kept.read_bytes()).hexdigest()
    again = to_gguf(folder, tmp_path / "again.gguf", types=("q3_k_m",), imatrix=kept, threads=1, verify="off")
    assert again.outputs[0].path.read_bytes() == data[0], "on any machine, and any number of threads"
    figures = [made.proofs[0].to_json()["logits"]["figures"] for made in (at_once, in_two)]
    assert figures[0]["kl_mean"] == pytest.approx(figures[1]["kl_mean"], rel=1e-3)
    assert figures[0]["perplexity_reference"] == pytest.approx(figures[1]["perplexity_reference"], rel=1e-5)


@pytest.mark.parametrize("name", ["q3_k_m", "iq2_xs"])
def test_a_full_proof_encodes_anew_with_the_same_importance(
    folder: Path, imatrix: Path, tmp_path: Path, name: str
) -> None:
    made = to_gguf(folder, tmp_path, types=(name,), imatrix=imatrix, verify="full", threads=2)
    weights = made.proofs[0].to_json()["weights"]
    assert weights["verdict"] in ("passed", "warned")
    recodable = [tensor for tensor in weights["tensors"] if not tensor["format"].startswith("iq")]
    assert recodable
    assert {tensor["state"] for tensor in recodable} == {"identical"}


def test_low_types_need_importance(
    folder: Path, imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["to-gguf", str(folder), "-q", "iq2_xs", "--no-verify", "-o", str(tmp_path / "low.gguf")]
    assert main(words) == 3
    printed = capsys.readouterr().err
    assert "needs importance data" in printed
    assert "kconv imatrix" in printed
    assert "--calibrate" in printed
    assert main([*words, "--imatrix", str(imatrix)]) == 0


def _wrong(folder: Path, names: list[str], columns: int) -> Path:
    tensors: dict[str, Any] = {}
    for name in names:
        tensors[f"{name}.in_sum2"] = np.ones((1, columns), np.float32)
        tensors[f"{name}.counts"] = np.ones((1, 1), np.float32)
    return write_with_gguf_py(folder / "wrong.gguf", tensors)


def test_wrong_requests_are_refused(
    folder: Path, imatrix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 for calls that make no sense, 3 for data of another model; nothing is written."""
    start = ["to-gguf", str(folder), "--no-verify", "-o", str(tmp_path / "out.gguf")]
    layers = ["blk.0.attn_q.weight", "blk.0.ffn_up.weight"]
    of_width, of_layers = tmp_path / "width", tmp_path / "layers"
    of_width.mkdir()
    of_layers.mkdir()
    cases = [
        (
            ["-q", "q4_0", "--imatrix", str(imatrix), "--calibrate", str(TEXTS / "facts.txt")],
            2,
            "--calibrate",
        ),
        (["--imatrix", str(imatrix)], 2, "only affect quantized types"),
        (["-q", "q4_0", "--imatrix", str(tmp_path / "missing.gguf")], 3, "does not exist"),
        (["-q", "q4_0", "--imatrix", str(folder / "config.json")], 3, "neither a GGUF nor an imatrix"),
        (["-q", "q4_0", "--imatrix", str(_wrong(of_width, layers, 96))], 3, "96 values"),
        (["-q", "q4_0", "--imatrix", str(_wrong(of_layers, ["blk.99.ffn_up.weight"], 128))], 3, "blk.99"),
        (["-q", "q4_0", "--calibrate", str(tmp_path / "missing.txt")], 3, "missing.txt does not exist"),
    ]
    for words, code, message in cases:
        assert main([*start, *words]) == code, words
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out.gguf").exists()


def test_missing_tensors_are_told_once(folder: Path, tmp_path: Path) -> None:
    part = _wrong(tmp_path, ["blk.0.attn_q.weight"], 128)
    made = to_gguf(folder, tmp_path / "out", types=("q4_0", "q4_1"), imatrix=part, verify=False, threads=2)
    (note,) = [note for note in made.notes if note.name == "missing-importance"]
    assert note.warning
    assert "blk.0.attn_output.weight" in note.message


def test_the_command_tells_what_it_made(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["imatrix", str(folder), "--text", str(TEXTS / "facts.txt"), "--chunks", "2", "--window", "64"]
    assert main([*words, "-o", str(tmp_path / "a.gguf"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["chunks"], printed["chunk_size"], printed["tokens"]) == (2, 64, 128)
    assert printed["architecture"] == "phi2"
    assert printed["datasets"] == ["facts.txt"]
    assert main([*words, "-o", str(tmp_path / "a.gguf")]) == 3
    assert "--force" in capsys.readouterr().err
    assert main([*words, "-o", str(tmp_path / "a.dat")]) == 2
    assert main([*words[:4], "--window", "4096"]) == 3
    assert "context" in capsys.readouterr().err
