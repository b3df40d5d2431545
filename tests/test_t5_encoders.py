"""T5's encoders by themselves: GGUF and ONNX against transformers, and against llama.cpp's own converter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_cpp_material import fetched_converter, run_converter

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.samples.t5_encoder import write_t5_encoder
from kconv.converters.samples.umt5 import write_umt5
from kconv.core.errors import UnsupportedModel
from kconv.core.gguf_file import read_header
from kconv.flows.to_onnx import to_onnx
from kconv.flows.verify import verify
from kconv.quant.gguf_weights import open_gguf

TEXTS = ("안녕하세요. 만나서 반갑습니다!", "a", "The quick brown fox. 대한민국의 수도는 서울이다. " * 6)
KINDS: dict[str, dict[str, Any]] = {
    "t5": {"n_positions": 300},
    "t5 v1.0": {"feed_forward_proj": "relu"},
    "mt5": {"kind": "MT5"},
    "umt5": {"kind": "UMT5", "own_biases": True},
}


def states(folder: Path, texts: tuple[str, ...] = TEXTS) -> list[Any]:
    """Hidden states ``(positions, hidden)`` of each text in fp32."""
    import torch
    from transformers import MT5EncoderModel, T5EncoderModel, UMT5EncoderModel

    made = {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}
    kind = json.loads((folder / "config.json").read_text("utf-8"))["model_type"]
    model = made[kind].from_pretrained(folder, dtype=torch.float32).eval()
    ids = [token_ids(folder, text) for text in texts]
    with torch.inference_mode():
        return [model(torch.tensor([each])).last_hidden_state[0].numpy() for each in ids]


def token_ids(folder: Path, text: str) -> list[int]:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    return [*model.encode(text), 1]


def pooled(rows: Any) -> Any:
    mean = rows.mean(0, dtype=np.float64)
    return mean / np.linalg.norm(mean)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_embeds_as_transformers(kind: str, tmp_path: Path) -> None:
    import llama_cpp

    folder = write_t5_encoder(tmp_path / "model", **KINDS[kind])
    made = to_gguf(folder, tmp_path / "out.gguf", types=("f32",), verify=kind == "umt5")
    assert made.verdict in ("passed", "not run")
    model = llama_cpp.Llama(
        str(tmp_path / "out.gguf"), embedding=True, n_ctx=256, n_batch=256, n_ubatch=256, verbose=False
    )
    for text, right in zip(TEXTS, states(folder), strict=True):
        found = np.array(model.embed(text), np.float64)
        assert 1 - pooled(right) @ (found / np.linalg.norm(found)) < 1e-6
    model.close()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["t5 v1.0", "umt5"])
def test_onnxruntime_embeds_as_transformers(kind: str, tmp_path: Path) -> None:
    import onnxruntime

    folder = write_t5_encoder(tmp_path / "model", **KINDS[kind])
    made = to_onnx(folder, tmp_path / "onnx", type="f32")
    assert made.proof is not None
    assert made.proof.verdict == "passed"
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    ids = [token_ids(folder, text) for text in TEXTS]
    fed = {
        name: np.zeros((len(ids), max(map(len, ids))), np.int64) for name in ("input_ids", "attention_mask")
    }
    for row, each in enumerate(ids):
        fed["input_ids"][row, : len(each)], fed["attention_mask"][row, : len(each)] = each, 1
    hidden, embedded = session.run(["last_hidden_state", "sentence_embedding"], fed)
    for row, vector, right in zip(hidden, embedded, states(folder), strict=True):
        assert np.abs(row[: len(right)] - right).max() < 1e-4 * np.abs(right).max()
        assert 1 - pooled(right) @ vector < 1e-6


@pytest.mark.long
def test_without_pooling_hidden_states_are_compared(tmp_path: Path) -> None:
    folder = write_t5_encoder(tmp_path / "model", pooling="")
    for proof in (
        to_gguf(folder, tmp_path / "out.gguf", types=("f32",)).proofs[0],
        to_onnx(folder, tmp_path / "onnx", type="f32").proof,
    ):
        assert proof is not None
        assert proof.verdict == "passed"


def test_a_decoder_beside_it_is_left_out(tmp_path: Path) -> None:
    """As UMT5EncoderModel does with a whole model's weights."""
    folder = write_umt5(tmp_path / "model", architectures=["UMT5EncoderModel"], num_decoder_layers=3)
    made = to_gguf(folder, tmp_path / "out.gguf", types=("f32",))
    assert made.proofs[0].verdict == "passed"
    header = read_header(tmp_path / "out.gguf")
    assert header.metadata["general.architecture"] == "t5encoder"
    assert all(info.name.startswith(("enc.", "token_embd.")) for info in header.tensors)


def test_a_bias_of_another_block_is_found(tmp_path: Path) -> None:
    folder = write_t5_encoder(tmp_path / "model", **KINDS["umt5"])
    file = tmp_path / "out.gguf"
    to_gguf(folder, file, types=("f32",), verify=False)
    header = read_header(file)
    places = {info.name: header.data_offset + info.offset for info in header.tensors}
    held = bytearray(file.read_bytes())
    one, other = (places[f"enc.blk.{i}.attn_rel_b.weight"] for i in (0, 2))
    held[other : other + 4 * 32 * 6] = held[one : one + 4 * 32 * 6]
    file.write_bytes(held)
    proof = verify(file, against=folder, ignore_manifest=True)
    assert proof.verdict == "failed"
    assert any("enc.blk.2.attn_rel_b" in finding.message for finding in proof.parts["weights"].findings)


def test_a_dense_module_is_said_not_to_be_converted(tmp_path: Path) -> None:
    folder = write_t5_encoder(tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text("utf-8"))
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (folder / "modules.json").write_text(json.dumps([*modules[:2], dense]), "utf-8")
    made = to_gguf(folder, tmp_path / "out.gguf", types=("f32",), verify=False)
    assert "t5encoder.pooling_type" not in read_header(tmp_path / "out.gguf").metadata
    assert any("Dense" in note.message and note.warning for note in made.notes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"relative_attention_max_distance": 64}, "t5encoder graph only supports 128"),
        ({"feed_forward_proj": "gated-silu"}, "t5encoder graph supports only gated layers"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(
    changes: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = write_t5_encoder(tmp_path / "model", **changes)
    with pytest.raises(UnsupportedModel, match=reason):
        to_gguf(folder, tmp_path / "out.gguf", verify=False)
    assert to_onnx(folder, tmp_path / "onnx", type="f32").proof is not None


def test_it_is_what_llama_cpps_own_converter_writes(tmp_path: Path) -> None:
    script = fetched_converter()
    folder = write_t5_encoder(tmp_path / "model", pooling="")
    to_gguf(folder, tmp_path / "ours.gguf", types=("f32",), verify=False)
    run_converter(script, [(folder, tmp_path / "theirs.gguf", "f32")])
    ours, theirs = (read_header(tmp_path / f"{name}.gguf").metadata for name in ("ours", "theirs"))
    keys = {key for key in theirs if key.startswith("t5encoder.")}
    # theirs gives other embeddings in llama-server, which hides what follows a token unless this key is false
    assert keys | {"t5encoder.attention.causal"} == {key for key in ours if key.startswith("t5encoder.")}
    assert ours["t5encoder.attention.causal"] is False
    assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}
    for key in ("tokens", "scores", "precompiled_charsmap", "add_space_prefix", "remove_extra_whitespaces"):
        assert ours[f"tokenizer.ggml.{key}"] == theirs[f"tokenizer.ggml.{key}"], key
    with open_gguf(tmp_path / "ours.gguf") as one, open_gguf(tmp_path / "theirs.gguf") as other:
        mine = {info.name: one.tensor(info) for info in one.header.tensors}
        given = {info.name: other.tensor(info) for info in other.header.tensors}
        assert mine.keys() == given.keys()
        for name, tensor in mine.items():
            assert np.array_equal(tensor.read(0, tensor.rows), given[name].read(0, tensor.rows)), name


def test_every_class_has_a_family() -> None:
    for name, kind in (("T5", "t5"), ("MT5", "mt5"), ("UMT5", "umt5")):
        family = family_for({"architectures": [f"{name}EncoderModel"], "model_type": kind})
        assert (family.arch, family.encoder_only) == ("t5encoder", True)
