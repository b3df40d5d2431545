"""The proof as a whole, through Python: published figures of a trained model, what must not change them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage_material import edited, scaled

from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.report.html import report_html
from kconv.verify import Proof, verify

TYPES = ("f32", "q8_0", "q4_0")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained demo model."""
    return write_sample("42dot", tmp_path_factory.mktemp("checkpoint") / "demo")


@pytest.fixture(scope="module")
def files(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in three types."""
    made = to_gguf(demo, tmp_path_factory.mktemp("files"), types=TYPES, verify=False)
    return {output.type: output.path for output in made.outputs}


def timeless(proof: Proof) -> Proof:
    return replace(proof, seconds=0.0)


# stories260K


@pytest.fixture(scope="module")
def stories(real: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """stories260K in three types."""
    made = to_gguf(real / "hf_stories260K", tmp_path_factory.mktemp("stories"), types=TYPES, verify=False)
    return {output.type: output.path for output in made.outputs}


@pytest.fixture(scope="module")
def five_stories(real: Path) -> list[str]:
    """Five stories, as the README of the real material takes them: each with BOS, cut to 512 tokens."""
    text = (real / "text" / "tinystories_sample.txt").read_text("utf-8")
    return [story.strip() for story in text.split("<|endoftext|>") if story.strip()]


def test_stories260k_in_f32_is_the_checkpoint(
    stories: dict[str, Path], five_stories: list[str], real: Path
) -> None:
    proof = verify(stories["f32"], real / "hf_stories260K", texts=five_stories, tokens=512)
    figures = proof.logits.figures
    assert figures is not None
    assert figures.logit_max < 5e-4  # of logits up to 20; measured: 4.4e-5, and processors differ by 2.8e-5
    assert figures.nll_reference == pytest.approx(1.266441, abs=1e-6)
    assert figures.nll_file == pytest.approx(1.266441, abs=1e-6)
    assert figures.same_top1 == 1
    assert proof.verdict in ("passed", "warned")  # its tokenizer drops surplus spaces, which is said


@pytest.mark.parametrize("type_", ["q8_0", "q4_0"])
def test_figures_are_equal_from_run_to_run(
    type_: str, stories: dict[str, Path], five_stories: list[str], real: Path
) -> None:
    runs = [
        verify(stories[type_], real / "hf_stories260K", texts=five_stories[:2], tokens=512) for _ in range(2)
    ]
    assert timeless(runs[0]) == timeless(runs[1])


# What must not change a verdict


@pytest.mark.parametrize("type_", TYPES)
def test_threads_and_windows_do_not_change_the_verdict(
    type_: str, files: dict[str, Path], demo: Path
) -> None:
    proofs = [verify(files[type_], demo, tokens=200, threads=threads) for threads in (1, 2)]
    assert proofs[0].verdict == proofs[1].verdict == "passed"
    one, two = (proof.logits.figures for proof in proofs)
    assert one is not None
    assert two is not None
    assert two.kl_mean == pytest.approx(one.kl_mean, rel=1e-3, abs=1e-9)
    assert two.nll_file == pytest.approx(one.nll_file, rel=1e-6)
    assert proofs[0].weights == proofs[1].weights
    assert proofs[0].tokens == proofs[1].tokens
    assert verify(files[type_], demo, tokens=200, window=50).verdict == "passed"


def test_a_long_text_is_read_a_part_at_a_time(files: dict[str, Path], demo: Path) -> None:
    text = " ".join(f"{number}번째 문장은 옛날 어느 마을에서 시작합니다." for number in range(900))
    proof = verify(files["f32"], demo, texts=["짧은 글입니다.", text], tokens=9000)
    assert proof.verdict == "passed"
    assert proof.logits.figures is not None
    windows = proof.provenance["windows"]
    assert sum(windows) > 8192 + 512  # more than is read at once
    assert proof.logits.figures.positions == sum(windows) - len(windows)
    assert proof.logits.figures.nmse < 1e-9


# The parts by themselves


def test_each_part_can_fail_alone(files: dict[str, Path], demo: Path, tmp_path: Path) -> None:
    tokens = verify(
        edited(
            files["f32"],
            tmp_path / "tokens.gguf",
            metadata={"tokenizer.ggml.tokens": lambda old: [*old[:300], old[301], old[300], *old[302:]]},
        ),
        demo,
        tokens=32,
    )
    metadata = verify(
        edited(files["f32"], tmp_path / "metadata.gguf", metadata={"tokenizer.ggml.eos_token_id": 5}),
        demo,
        tokens=32,
    )
    weights = verify(scaled(files["q4_0"], tmp_path / "weights.gguf"), demo, tokens=32)
    logits = verify(files["q4_0"], demo, tokens=32, gates={"q4_0": 1e-5})
    for name, proof in {"tokens": tokens, "metadata": metadata, "weights": weights, "logits": logits}.items():
        failed = [part for part, part_proof in proof.parts.items() if part_proof.verdict == "failed"]
        assert failed == [name], proof.cause
        assert proof.cause is not None
        assert proof.cause.startswith(name)


def test_a_file_llama_cpp_refuses_is_a_verdict(files: dict[str, Path], demo: Path, tmp_path: Path) -> None:
    broken = edited(
        files["q8_0"], tmp_path / "broken.gguf", metadata={"llama.attention.head_count": lambda old: old + 3}
    )
    proof = verify(broken, demo, tokens=32)
    assert proof.logits.verdict == "failed"
    assert "llama.cpp" in proof.logits.findings[0].message
    assert proof.metadata.verdict == "failed"


def test_a_missing_tensor_is_a_verdict_too(files: dict[str, Path], demo: Path, tmp_path: Path) -> None:
    lacking = edited(files["f32"], tmp_path / "lacking.gguf", tensors={"blk.1.ffn_up.weight": None})
    proof = verify(lacking, demo, tokens=32)
    assert proof.weights.verdict == "failed"
    assert "blk.1.ffn_up.weight" in (proof.cause or "")
    assert proof.logits.verdict == "failed"


def test_the_proof_says_what_was_asked_for_and_of_which_file(files: dict[str, Path], demo: Path) -> None:
    asked: dict[str, Any] = {"tokens": 24, "window": 16, "gates": {"q4_0": 0.2, "": 0.3}, "diagnose": False}
    proof = verify(
        files["q4_0"], demo, texts=["서울의 봄은 짧다. " * 9, "Everyone has rights. " * 9], **asked
    )
    evidence = proof.provenance
    assert evidence["artifact"]["hashed"] == evidence["checkpoint"]["files"][0]["hashed"] == "now"
    assert evidence["artifact"]["sha256"] == hashlib.sha256(files["q4_0"].read_bytes()).hexdigest()
    wanted = {**asked, "texts": 2, "gates": ["q4_0=0.2", "0.3"], "ignore_manifest": False}
    assert evidence["options"] == wanted
    command = "--text FILE --text FILE --tokens 24 --window 16 --gate q4_0=0.2 --gate 0.3 --no-diagnose"
    page = report_html([proof])
    assert f"--against {demo} {command}" in page
    assert "stands for a text" in page
    plain = report_html([verify(files["q4_0"], demo, tokens=24)])
    assert f"--against {demo} --tokens 24<" in plain
    assert "stands for a text" not in plain


def test_the_diagnosis_separates_weights_from_runtime(
    files: dict[str, Path], demo: Path, tmp_path: Path
) -> None:
    harmed = scaled(files["f32"], tmp_path / "harmed.gguf", "blk.2.attn_v.weight", 1.5)
    by_weights = verify(harmed, demo, tokens=64).logits.diagnosis
    assert by_weights is not None
    assert by_weights.first == 2
    assert [layer.weights == 0 for layer in by_weights.layers] == [True, True, False]
    assert max(layer.runtime for layer in by_weights.layers) < 1e-9
    assert by_weights.worst_tensors == ("blk.2.attn_v.weight",)
    turned = edited(files["f32"], tmp_path / "turned.gguf", metadata={"llama.rope.freq_base": 500000.0})
    by_runtime = verify(turned, demo, tokens=64).logits.diagnosis
    assert by_runtime is not None
    assert by_runtime.first == 0
    assert all(layer.weights == 0 for layer in by_runtime.layers)
    assert by_runtime.layers[0].runtime > 1e-3
    assert "metadata" in by_runtime.conclusion


# Conversions


def test_a_conversion_ends_with_its_proof(demo: Path, tmp_path: Path) -> None:
    progress_calls: list[str] = []
    made = to_gguf(demo, tmp_path, types=("q8_0", "q4_0"), announce=progress_calls.append)
    assert made.verdict == "passed"
    (cost,) = progress_calls
    assert cost.startswith("proof: 256 tokens through 3,016,448 weights in fp32 and through 2 files, about ")
    for output, proof in zip(made.outputs, made.proofs, strict=True):
        manifest = json.loads(output.manifest.read_text("utf-8"))
        assert manifest["options"]["verify"] == "quick"
        assert manifest["proof"] == json.loads(json.dumps(proof.to_manifest()))
        assert manifest["proof"]["verdict"] == "passed"
        assert manifest["proof"]["logits"]["figures"]["positions"] == 254
        assert manifest["proof"]["tokens"]["parity"]["verdict"] == "exact"
        assert manifest["proof"]["weights"]["verdict"] == "not run"
        assert verify(output.path, demo, tokens=32).verdict == "passed"


def test_manifests_of_equal_conversions_are_equal(demo: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        to_gguf(demo, tmp_path / name, types=["q4_0"])
    names = [path.name for path in sorted((tmp_path / "one").iterdir())]
    assert len(names) == 2
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_full_proof_looks_at_everything(demo: Path, tmp_path: Path) -> None:
    (proof,) = to_gguf(demo, tmp_path, types=["q4_0"], verify="full").proofs
    assert isinstance(proof, Proof)
    assert {name: part.verdict for name, part in proof.parts.items()} == dict.fromkeys(
        ("tokens", "metadata", "weights", "runtime", "logits"), "passed"
    )
    assert all(tensor.state == "identical" for tensor in proof.weights.tensors)
    assert proof.logits.figures is not None
    assert proof.logits.figures.positions > 2000
