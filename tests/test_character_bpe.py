"""KoGPT2's kind of folder: a GPT-2 whose tokenizer is a BPE over characters, in tokenizer.json alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kconv.converters.samples import write_sample
from kconv.converters.samples.korean_text import korean_text
from kconv.core.errors import VocabError
from kconv.flows.convert import to_gguf
from kconv.flows.to_onnx import to_onnx

SPECIAL = (
    "</s>",
    "<usr>",
    "<pad>",
    "<sys>",
    "<unk>",
    "<mask>",
    "<d>",
    "</d>",
    *(f"<unused{i}>" for i in range(9)),
)


@pytest.fixture(scope="module")
def kogpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As skt/kogpt2-base-v2 is published: config.json, weights, and a tokenizer.json with NFKC and U+2581."""
    from tokenizers import SentencePieceBPETokenizer

    folder = write_sample("gpt2", tmp_path_factory.mktemp("kogpt2") / "kogpt2-base-v2")
    for path in (*folder.glob("*token*"), folder / "generation_config.json"):
        path.unlink()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    tokenizer = SentencePieceBPETokenizer(unk_token="<unk>")
    size = config["vocab_size"]
    tokenizer.train_from_iterator(
        korean_text(), vocab_size=size, special_tokens=list(SPECIAL), limit_alphabet=400, show_progress=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_it_becomes_onnx(kogpt2: Path, tmp_path: Path) -> None:
    made = to_onnx(kogpt2, tmp_path / "onnx", type="f32")
    assert made.proof is not None
    assert made.proof.verdict == "passed"
    assert made.proof.logits.figures is not None
    assert made.proof.logits.figures.nmse < 1e-8
    assert (tmp_path / "onnx" / "tokenizer.json").read_bytes() == (kogpt2 / "tokenizer.json").read_bytes()


def test_a_gguf_is_refused_in_a_sentence_that_names_to_onnx(kogpt2: Path, tmp_path: Path) -> None:
    with pytest.raises(VocabError) as caught:
        to_gguf(kogpt2, tmp_path / "out", types=["f32"])
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300
    assert str(caught.value.hint).startswith("kconv to-onnx converts it")
    assert not list((tmp_path / "out").glob("*"))
