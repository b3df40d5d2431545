"""Files as strangers publish them, through ``kconv verify``: fair ones pass or warn, wrong ones fail.

All are made with llama.cpp's own tools. Losses are left out of it by gates nothing reaches.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from damage_material import merged_adapter
from strangers_material import (
    FTYPES,
    IMATRIX,
    IQ4_NL,
    Q6_K,
    Q8_0,
    UNSLOTH,
    T,
    measure_importance,
    quantized,
    rewritten,
)

from kconv.cli.main import main
from kconv.converters import to_gguf
from kconv.converters.samples import write_sample
from kconv.core.gguf_file import read_header
from kconv.quant.formats import FORMATS
from kconv.quant.ggml import dequantize, encode
from kconv.quant.low_rank import directedness, hides_update, rank_of_update

SAMPLES = ("42dot", "llama-3-ko", "kebyt5")
LLAMAS = SAMPLES[:2]
GATES = [word for type_ in (*FTYPES, "f16", "f32") for word in ("--gate", f"{type_}=1000")]
PARTS = ("tokens", "metadata", "weights")


@dataclass(frozen=True)
class Subject:
    """A checkpoint and what kconv made of it in f16, from which strangers' files are made."""

    checkpoint: Path
    file: Path


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    folder = tmp_path_factory.mktemp("strangers")
    made = {}
    for name in SAMPLES:
        write_sample(name, folder / name)
        to_gguf(folder / name, folder / f"{name}.gguf", types=("f16",), verify=False)
        made[name] = Subject(folder / name, folder / f"{name}.gguf")
        if name in LLAMAS:
            measure_importance(made[name].file)
    return made


Verified = Callable[[Path, Subject], tuple[int, dict[str, Any]]]


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Verified:
    """Exit code and JSON of ``kconv verify``."""

    def run(path: Path, subject: Subject) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        words = ["verify", str(path), "--against", str(subject.checkpoint), "--tokens", "64", "--json"]
        code = main([*words, *GATES])
        proof: dict[str, Any] = json.loads(capsys.readouterr().out)
        return code, proof

    return run


def said(proof: Mapping[str, Any], *, grave: bool) -> dict[str, str]:
    """Messages of the findings by where they are, those of the runtime's answers left out."""
    findings = [finding for part in PARTS for finding in proof[part]["findings"]]
    return {each["where"]: each["message"] for each in findings if each["grave"] is grave}


@pytest.mark.parametrize("name", LLAMAS)
def test_unsloth(name: str, subjects: dict[str, Subject], tmp_path: Path, verified: Verified) -> None:
    """Other formats in some layers, a mended chat template, padding of its own, its own keys."""
    subject = subjects[name]
    mixed = [("blk.0.ffn_down", Q6_K), ("attn_v", Q8_0), ("blk.1.ffn_up", IQ4_NL)]
    bare = quantized(subject.file, tmp_path / "bare.gguf", "q4_k_m", imatrix=True, mixed=mixed)
    changes = {"tokenizer.chat_template": "{{ messages[0].content }}", T + "padding_token_id": 7}
    path = rewritten(bare, tmp_path / "Demo-UD-Q4_K_XL.gguf", {**UNSLOTH, **changes})
    formats = {info.name: info.ggml_type for info in read_header(path).tensors}
    assert (formats["blk.0.attn_v.weight"], formats["blk.1.ffn_up.weight"]) == (Q8_0, IQ4_NL)
    code, proof = verified(path, subject)
    assert code == 0
    assert said(proof, grave=True) == {}
    remarks = said(proof, grave=False)
    assert set(remarks) == set(changes)
    assert "no answer changes" in remarks[T + "padding_token_id"]
    assert proof["metadata"]["verdict"] == "warned"


@pytest.mark.parametrize("type_", ["iq4_xs", "iq3_m", "iq2_m"])
@pytest.mark.parametrize("name", LLAMAS)
def test_bartowski(
    name: str, type_: str, subjects: dict[str, Subject], tmp_path: Path, verified: Verified
) -> None:
    """I-quants made with an imatrix, and the keys that say so."""
    subject = subjects[name]
    bare = quantized(subject.file, tmp_path / "bare.gguf", type_, imatrix=True)
    path = rewritten(bare, tmp_path / f"Demo-{type_.upper()}.gguf", IMATRIX)
    code, proof = verified(path, subject)
    assert code == 0
    assert said(proof, grave=True) == {}
    assert all("usual for the format" in message for message in said(proof, grave=False).values())


@pytest.mark.parametrize("name", LLAMAS)
def test_in_parts(name: str, subjects: dict[str, Subject], tmp_path: Path, verified: Verified) -> None:
    subject = subjects[name]
    whole = quantized(subject.file, tmp_path / "whole.gguf", "q4_0")
    first = rewritten(whole, tmp_path / "demo-q4_0.gguf", tensors_each=7)
    assert len(list(tmp_path.glob("demo-q4_0-*-of-*.gguf"))) > 2
    code, proof = verified(first, subject)
    assert (code, said(proof, grave=True), said(proof, grave=False)) == (0, {}, {})


OLD = ("general.file_type", "general.quantization_version", T + "add_eos_token")
OLD_LLAMA = ("vocab_size", "attention.key_length", "attention.value_length")
OLD_T5 = ("vocab_size", "attention.layer_norm_epsilon", "attention.head_count_kv")


@pytest.mark.parametrize("name", SAMPLES)
def test_older_converters(
    name: str, subjects: dict[str, Subject], tmp_path: Path, verified: Verified
) -> None:
    """Keys they did not write yet count as what llama.cpp takes then, which is what the checkpoint says."""
    subject = subjects[name]
    bare = quantized(subject.file, tmp_path / "bare.gguf", "q8_0")
    arch = read_header(bare).arch
    own = OLD_T5 if arch == "t5" else OLD_LLAMA
    gone = [*OLD, *(f"{arch}.{key}" for key in own)]
    if name == "42dot":  # 10,000 and as many heads of either kind are the defaults; BOS is not added to BPE
        gone += ["llama.rope.freq_base", "llama.attention.head_count_kv", T + "add_bos_token"]
    if arch == "t5":
        gone = [key for key in gone if key != T + "add_eos_token"]
    path = rewritten(bare, tmp_path / "old.gguf", dict.fromkeys(gone))
    assert not {*gone} & {*read_header(path).metadata}
    code, proof = verified(path, subject)
    assert (code, said(proof, grave=True), said(proof, grave=False)) == (0, {}, {})


WRONG: dict[tuple[str, str], tuple[Any, str, str]] = {
    ("42dot", T + "pre"): (None, "tokens", "the file has no tokenizer.ggml.pre: add it"),
    ("llama-3-ko", T + "pre"): (None, "tokens", "the file has no tokenizer.ggml.pre: add it"),
    ("llama-3-ko", T + "eos_token_id"): (5, "metadata", "stop at the wrong token"),
    ("llama-3-ko", T + "bos_token_id"): (5, "metadata", "begin with the wrong token"),
    ("llama-3-ko", "llama.rope.freq_base"): (None, "metadata", "so llama.cpp uses 10000"),
    ("llama-3-ko", "llama.attention.layer_norm_rms_epsilon"): (1e-6, "metadata", "epsilon"),
    ("llama-3-ko", "llama.attention.head_count_kv"): (None, "metadata", "attention heads"),
    ("kebyt5", "t5.decoder_start_token_id"): (None, "metadata", "answers begin with the wrong token"),
    ("kebyt5", "t5.attention.relative_buckets_count"): (16, "metadata", "relative_buckets_count"),
    ("kebyt5", T + "eos_token_id"): (5, "metadata", "stop at the wrong token"),
}


@pytest.mark.parametrize(("name", "key"), WRONG)
def test_keys_that_change_answers(
    name: str, key: str, subjects: dict[str, Subject], tmp_path: Path, verified: Verified
) -> None:
    value, part, words = WRONG[name, key]
    path = rewritten(subjects[name].file, tmp_path / "wrong.gguf", {key: value})
    code, proof = verified(path, subjects[name])
    assert code == 1
    assert proof[part]["verdict"] == "failed"
    assert any(words in message for message in said(proof, grave=True).values())


SHOWN: dict[tuple[str, str], Any] = {
    ("42dot", "llama.context_length"): 256,
    ("42dot", "llama.pooling_type"): 1,
    ("42dot", "llama.vocab_size"): 2047,
    ("42dot", "llama.attention.sliding_window"): 64,
    ("42dot", "llama.rope.scaling.original_context_length"): 64,
    ("42dot", T + "padding_token_id"): 7,
    ("42dot", T + "unknown_token_id"): 7,
    ("llama-3-ko", T + "seperator_token_id"): 7,
    ("kebyt5", T + "padding_token_id"): 7,
    ("kebyt5", "t5.context_length"): 64,
    ("kebyt5", "t5.attention.layer_norm_epsilon"): 0.5,
}


@pytest.mark.parametrize(("name", "key"), SHOWN)
def test_keys_that_change_no_answer(
    name: str, key: str, subjects: dict[str, Subject], tmp_path: Path, verified: Verified
) -> None:
    """They warn, and llama.cpp computes the same to the last bit."""
    subject = subjects[name]
    path = rewritten(subject.file, tmp_path / "other.gguf", {key: SHOWN[name, key]})
    code, proof = verified(path, subject)
    assert code == 0
    assert (said(proof, grave=True), set(said(proof, grave=False))) == ({}, {key})
    assert proof["logits"]["figures"] == figures(subject, verified, tmp_path)


def figures(subject: Subject, verified: Verified, folder: Path) -> dict[str, Any]:
    """What is measured of the file as it was."""
    _, proof = verified(rewritten(subject.file, folder / "same.gguf"), subject)
    assert said(proof, grave=False) == {}
    measured: dict[str, Any] = proof["logits"]["figures"]
    return measured


# A merged adapter


@pytest.mark.parametrize(
    ("type_", "imatrix"), [("q8_0", False), ("q4_0", False), ("q4_k_m", True), ("iq4_xs", True)]
)
def test_a_merged_adapter(
    type_: str, imatrix: bool, subjects: dict[str, Subject], tmp_path: Path, verified: Verified
) -> None:
    """An update of 5 % of the weights' norm, far less than the error of four bits, still has a direction."""
    subject = subjects["42dot"]
    merged = merged_adapter(subject.file, tmp_path / "merged.gguf", size=0.05)
    merged.with_suffix(".npz").write_bytes(subject.file.with_suffix(".npz").read_bytes())
    path = quantized(merged, tmp_path / "lora.gguf", type_, imatrix=imatrix)
    code, proof = verified(path, subject)
    assert code == 1
    assert proof["weights"]["verdict"] == "failed"
    assert "merging a LoRA adapter" in proof["cause"]


def test_the_rank_of_an_update() -> None:
    random = np.random.default_rng(3)
    weights = random.standard_normal((128, 256)).astype(np.float32)
    thin, flat = random.standard_normal((128, 4)), random.standard_normal((4, 256))
    update = (thin @ flat / 40).astype(np.float32)
    assert rank_of_update(weights + update, weights, 0.0) == 4
    assert rank_of_update(weights.copy(), weights, 0.0) is None
    tuned = weights + 0.05 * random.standard_normal(weights.shape).astype(np.float32)
    assert rank_of_update(tuned, weights, 0.0) is None


KINDS = ("normal", "heavy tails", "uneven columns", "very uneven columns", "outlying columns", "equal rows")


@pytest.mark.parametrize("type_", ["q8_0", "q4_0", "q4_1", "q4_K", "q5_K", "iq4_xs"])
@pytest.mark.parametrize("kind", KINDS)
def test_honest_rounding_hides_nothing(kind: str, type_: str) -> None:
    """Whatever the weights and the importance data."""
    random = np.random.default_rng(4)
    weights = random.standard_normal((128, 512))
    if kind == "heavy tails":
        weights = random.standard_t(3, weights.shape)
    elif kind == "equal rows":
        weights[:64] = weights[0]
    elif kind == "outlying columns":
        weights[:, :5] *= 100
    elif "uneven" in kind:
        weights *= np.exp((2 if "very" in kind else 1) * random.standard_normal(512))
    weights = weights.astype(np.float32)
    format = FORMATS[type_]
    data = np.empty(format.tensor_bytes(weights.shape), np.uint8)
    encode(format, weights, data)
    usual = max(1.0, directedness(dequantize(format, data, weights.shape), weights))
    for uneven in (1, 3):
        encode(format, weights, data, np.exp(uneven * random.standard_normal(512)).astype(np.float32))
        stored = dequantize(format, data, weights.shape)
        assert directedness(stored, weights) < 1.12 * usual
        assert not hides_update(stored, weights, format)
