"""What ONNX graphs can and llama.cpp cannot is converted and proven; what neither can is refused as such."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_material import random_llama
from t5_checkpoints import write_t5

from kconv.converters import to_gguf, to_onnx
from kconv.core.errors import CheckpointError, KconvError, TokenMismatch, UnsupportedModel, VocabError
from kconv.runtimes.onnx import read_onnx_model
from kconv.runtimes.onnx_folder import open_onnx
from kconv.verify import verify
from kconv.vocab.candidates import Candidate, candidates
from kconv.vocab.tokenizer import Source

DEEP: dict[str, Any] = {"num_layers": 1, "num_decoder_layers": 3}
FAR: dict[str, Any] = {"relative_attention_max_distance": 40, "feed_forward_proj": "gated-silu"}


@pytest.mark.parametrize(("changes", "type_name"), [(DEEP, "q4_0"), (FAR, "f32")])
def test_t5_as_no_graph_of_llama_cpp_has_it(changes: dict[str, Any], type_name: str, tmp_path: Path) -> None:
    source = write_t5(tmp_path / "checkpoint", **changes)
    with pytest.raises(UnsupportedModel) as caught:
        to_gguf(source, tmp_path / "out.gguf", verify=False)
    assert "to-onnx" in (caught.value.hint or "")
    done = to_onnx(source, tmp_path / "onnx", type=type_name, verify=False)
    proof = verify(done.path, source, tokens=80, threads=1)
    assert proof.verdict == "passed", proof.cause


def with_splits(folder: Path, pattern: str) -> Path:
    """A Llama whose tokenizer cuts text as no pre-tokenizer of llama.cpp does."""
    from tokenizers import Regex, Tokenizer, pre_tokenizers

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_a_tokenizer_llama_cpp_has_no_pre_tokenizer_for(
    tmp_path: Path, small_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def few(source: Source) -> Iterator[Candidate]:
        return itertools.islice(candidates(source), 4)  # all of them fail, which takes a minute

    monkeypatch.setattr("kconv.vocab.selection.candidates", few)
    source = with_splits(random_llama(tmp_path / "checkpoint", small_tokenizer), "[aeiou가-깋]")
    with pytest.raises(TokenMismatch):
        to_gguf(source, tmp_path / "out.gguf", verify=False)
    done = to_onnx(source, tmp_path / "onnx", type="f32", verify=False)
    proof = verify(done.path, source, tokens=80, threads=1)
    assert proof.verdict == "passed", proof.cause
    assert (tmp_path / "onnx" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert read_onnx_model(open_onnx(tmp_path / "onnx")).source.encode("가나 abc", True)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"feed_forward_proj": "gated-laplace"},
            UnsupportedModel,
            "activation is 'laplace'; kconv's ONNX graphs",
        ),
        ({"relative_attention_max_distance": 1 << 30}, CheckpointError, "expected at most 65536"),
        ({"relative_attention_max_distance": 16}, CheckpointError, "num_buckets is 32, expected .* to 31"),
        ({"num_decoder_layers": 10**6}, KconvError, "num_decoder_layers 1000000"),
    ],
)
def test_what_is_refused_speaks_of_onnx(
    changes: dict[str, Any], kind: type[KconvError], message: str, tmp_path: Path
) -> None:
    source = write_t5(tmp_path / "checkpoint")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(kind, match=message) as caught:
        to_onnx(source, tmp_path / "onnx")
    assert "llama.cpp" not in f"{caught.value.message} {caught.value.hint}"
    assert not (tmp_path / "onnx").exists()


def test_a_checkpoint_without_a_tokenizer(tmp_path: Path, small_tokenizer: Path) -> None:
    source = random_llama(tmp_path / "checkpoint", small_tokenizer)
    for path in source.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(VocabError, match="contains no tokenizer"):
        to_onnx(source, tmp_path / "onnx", verify=False)
    assert not (tmp_path / "onnx").exists()
