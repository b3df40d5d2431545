"""UMT5: relative biases in every block, through llama.cpp's t5 graph and ONNX, against transformers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx_t5_material import prefill, right_logits, sessions, step_by_step, write
from t5_checkpoints import nmse, t5_logits

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.samples.umt5 import write_umt5
from kconv.core.errors import UnsupportedModel
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.reference.model import Reference
from kconv.verify import verify

VARIANTS: Mapping[str, dict[str, Any]] = {
    "published": {},
    "tied": {"tie_word_embeddings": True},
    "not gated": {"feed_forward_proj": "relu", "num_decoder_layers": 3},
    "other buckets": {"relative_attention_num_buckets": 20, "num_layers": 4, "num_decoder_layers": 1},
}
IDS = np.random.default_rng(0).integers(3, 1200, (3, 200))  # longer than the farthest distance, 128
TARGET = np.concatenate([np.zeros((3, 1), int), np.random.default_rng(1).integers(3, 1200, (3, 139))], axis=1)


@pytest.fixture(scope="module", params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_umt5(tmp_path_factory.mktemp("umt5") / "model", **VARIANTS[request.param])


def loaded(folder: Path) -> Any:
    """Transformers' model. Version 5 takes a head of its own for a tied one and scales its logits."""
    import torch
    import transformers

    model: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    model.config.tie_word_embeddings = open_checkpoint(folder).config["tie_word_embeddings"]
    return model.eval()


def test_logits_in_llama_cpp_are_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    made = to_gguf(checkpoint, tmp_path, types=("f32",), verify=False, threads=2)
    assert made.parity.verdict == "exact"
    path = made.outputs[0].path
    right = right_logits(loaded(checkpoint), IDS[:1], np.ones_like(IDS[:1]), TARGET[:1])[0]
    logits = t5_logits(path, IDS[0].tolist(), TARGET[0].tolist())
    print(f"NMSE {nmse(logits, right):.2e}")
    assert nmse(logits, right) < 1e-4
    assert (logits.argmax(-1) == right.argmax(-1)).mean() > 0.99
    names = {info.name for info in read_header(path).tensors}
    layers = open_checkpoint(checkpoint).config
    for side, key in (("enc", "num_layers"), ("dec", "num_decoder_layers")):
        assert {f"{side}.blk.{i}.attn_rel_b.weight" for i in range(layers[key])} <= names


def test_logits_in_onnx_are_those_of_transformers(checkpoint: Path, tmp_path: Path) -> None:
    run = sessions(write(checkpoint, tmp_path / "onnx"))
    mask = np.ones(IDS.shape, np.int64)
    mask[1, 120:] = 0
    right = right_logits(loaded(checkpoint), IDS, mask, TARGET)
    for logits in (
        prefill(run, IDS, mask, TARGET),
        step_by_step(run, IDS, mask, TARGET, 1, *[1] * 7, 5, 120, 1, 6),
    ):
        assert np.abs(logits - right).max() < 1e-5 * right.std()


def test_the_reference_computes_what_transformers_does(checkpoint: Path) -> None:
    opened = open_checkpoint(checkpoint)
    reference = Reference(opened, family_for(opened.config), threads=2)
    window = Window(0, tuple(TARGET[0].tolist()), source=tuple(IDS[0].tolist()))
    right = right_logits(loaded(checkpoint), IDS[:1], np.ones_like(IDS[:1]), TARGET[:1])[0]
    logits = reference.read((window,)).logits(0, 0, len(window.ids))
    assert np.abs(logits - right).max() < 5e-6 * np.abs(right).max()


@pytest.mark.parametrize(
    ("name", "works"),
    [
        ("XLMRobertaModel", "llama.cpp's own converter takes it"),
        ("RobertaModel", "its files are wrong; export it with optimum"),
        ("RobertaForMaskedLM", "export it with optimum"),
        ("BertModel", "llama.cpp's own converter takes it"),
    ],
)
def test_a_refusal_of_an_encoder_says_what_takes_it(name: str, works: str) -> None:
    with pytest.raises(UnsupportedModel, match=works):
        family_for({"architectures": [name]})


def test_a_bias_that_is_another_blocks_is_named(tmp_path: Path) -> None:
    """The graph takes it without complaint: the first block's would do for all of a T5's."""
    folder = write_umt5(tmp_path / "model")
    path = to_gguf(folder, tmp_path, types=("f32",), verify=False, threads=2).outputs[0].path
    header = read_header(path)
    places = {info.name: header.data_offset + info.offset for info in header.tensors}
    size = 4 * 32 * 6
    held = bytearray(path.read_bytes())
    one, other = (places[f"enc.blk.{i}.attn_rel_b.weight"] for i in (0, 2))
    held[other : other + size] = held[one : one + size]
    path.write_bytes(held)
    proof = verify(path, folder, tokens=32, diagnose=False, threads=2)
    assert proof.right == "failed"
    assert {finding.where for finding in proof.weights.findings} == {"enc.blk.2.attn_rel_b.weight"}
