"""Tokenizers that normalize to NFC, as Qwen's and GPT-NeoX's do: exact on such text, said, made up for."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import vocab_material as material
from llama_material import random_llama
from run_material import with_metadata
from tokenizers import Tokenizer

from kconv.converters import to_gguf
from kconv.core.errors import TokenMismatch
from kconv.core.gguf_file import read_header
from kconv.flows.generate import generate
from kconv.flows.to_onnx import to_onnx
from kconv.flows.verify import verify
from kconv.vocab.normal_form import as_trained
from kconv.vocab.selection import select_vocab
from kconv.vocab.token_settings import AddedToken
from kconv.vocab.tokenizer import composed

KEY = "kconv.tokenizer.normalizer"
DECOMPOSED = unicodedata.normalize("NFD", "안녕하세요, café에서 만나요")


def edited(folder: Path, **changes: Any) -> Path:
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **changes}), encoding="utf-8")
    return folder


def normalizing(path: Path, normalizer: dict[str, Any]) -> Path:
    tokenizer = path / "tokenizer"
    rows = material.llama3_like(tokenizer)
    return random_llama(path / "model", edited(tokenizer, normalizer=normalizer), vocab_size=rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = normalizing(tmp_path_factory.mktemp("nfc"), {"type": "NFC"})
    file = folder.parent / "out.gguf"
    conversion = to_gguf(folder, file, types=["f32"], verify=False)
    parity = conversion.parity
    assert parity.verdict == "nfc"
    assert 0 < parity.texts - parity.exact <= parity.not_nfc < parity.texts // 2
    (note,) = [note for note in conversion.notes if note.name == "nfc"]
    assert note.warning
    assert f"of {parity.not_nfc} texts" in note.message
    return folder, file


def test_file_and_manifest_say_it(made: tuple[Path, Path]) -> None:
    assert read_header(made[1]).metadata[KEY] == "NFC"
    manifest = json.loads(Path(f"{made[1]}.manifest.json").read_text("utf-8"))
    assert manifest["proof"]["tokens"]["verdict"] == "nfc"
    assert manifest["proof"]["tokens"]["not_in_nfc"] > 0


def test_run_normalizes_prompts(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = made
    wanted = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(DECOMPOSED).ids
    given = generate(file, DECOMPOSED, tokens=4, greedy=True, chat=False, threads=1)
    assert list(given.prompt_ids) == wanted
    plain = with_metadata(file, tmp_path / "plain.gguf", kconv__tokenizer__normalizer=None)
    assert (
        list(generate(plain, DECOMPOSED, tokens=4, greedy=True, chat=False, threads=1).prompt_ids) != wanted
    )


def test_verify_warns_and_knows_the_key(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = made
    proof = verify(file, against=folder)
    tokens = proof.parts["tokens"]
    assert (tokens.verdict, proof.verdict) == ("warned", "warned")
    assert any(finding.where == "nfc" for finding in tokens.findings)
    assert proof.parts["metadata"].verdict == "passed"
    other = with_metadata(file, tmp_path / "other.gguf", kconv__tokenizer__normalizer="NFKC")
    findings = verify(other, against=folder).parts["metadata"].findings
    assert [(finding.where, finding.expected, finding.grave) for finding in findings] == [(KEY, "NFC", False)]


@pytest.mark.parametrize(
    "normalizer",
    [
        {"type": "NFKC"},
        {"type": "NFD"},
        {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]},
    ],
)
def test_others_stay_refused(tmp_path: Path, normalizer: dict[str, Any]) -> None:
    with pytest.raises(TokenMismatch):
        to_gguf(normalizing(tmp_path, normalizer), tmp_path / "out.gguf", verify=False)
    assert not (tmp_path / "out.gguf").exists()


def test_onnx_folders_keep_their_tokenizer(made: tuple[Path, Path], tmp_path: Path) -> None:
    proof = to_onnx(made[0], tmp_path / "onnx", type="f32").proof
    assert proof is not None
    assert proof.parts["tokens"].verdict == "passed"


def test_special_tokens_are_matched_before() -> None:
    """A stroke behind a token must not become one letter with its last character."""
    text = "<|end|>\u0338 가\u11a8"
    assert unicodedata.normalize("NFC", text) != "<|end|>\u0338 각"
    assert composed(text, [AddedToken("<|end|>")], parse_special=True) == "<|end|>\u0338 각"
    metadata = {KEY: "NFC", "tokenizer.ggml.tokens": ("a", "<|end|>"), "tokenizer.ggml.token_type": (1, 3)}
    assert as_trained(metadata, text) == "<|end|>\u0338 각"
    assert as_trained({}, text) == text


def test_with_a_space_in_front(tmp_path: Path) -> None:
    """Both at once, as byte-fallback vocabularies may have it."""
    rows = material.eagle_like(tmp_path, metaspace="first")
    edited(tmp_path, normalizer={"type": "NFC"})
    settled, parity = select_vocab(material.model(rows), material.checkpoint(tmp_path))
    assert parity.verdict == "leading-space"
    assert {"nfc", "leading-space"} <= {note.name for note in settled.notes}
