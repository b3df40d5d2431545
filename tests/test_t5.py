"""The recipe of T5: converted files in llama.cpp give transformers' logits, and what cannot is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from t5_checkpoints import BYT5, byte_ids, nmse, reference_logits, t5_logits, t5_weights, write_t5

from kconv.converters import to_gguf
from kconv.converters.families import family_for
from kconv.converters.mapping import build, parameters, unmapped
from kconv.core.errors import CheckpointError, KconvError, MappingError, UnsupportedModel
from kconv.core.gguf_file import read_header
from kconv.core.reading import open_checkpoint
from kconv.quant.ggml import to_float32
from kconv.quant.gguf_weights import open_gguf

SOURCE = byte_ids("한국의 수도는 서울이다. The quick brown fox. " * 6)
TARGET = [0, *byte_ids("서울은 한국의 수도입니다.", end=False)]

VARIANTS: dict[str, dict[str, Any]] = {
    "byt5": {},
    "relu": {"feed_forward_proj": "relu"},
    "relu-tied": {"feed_forward_proj": "relu", "tie_word_embeddings": True, "head": False},
    "tied-by-default": {"tie_word_embeddings": None, "head": False},
    "tied-not-scaled": {"scale_decoder_outputs": False, "tie_word_embeddings": True, "head": False},
    "saved-by-transformers-5": {"scale_decoder_outputs": False, "tie_word_embeddings": True},
    "equal-depths": {"num_decoder_layers": None},
    "wide-heads": {"d_kv": 40, "num_heads": 3, "d_model": 64, "num_layers": 4, "num_decoder_layers": 1},
    "buckets": {"relative_attention_num_buckets": 20},
    "more-rows": {"vocab_size": 400},
    "fewer-rows": {"vocab_size": 262},
    "starts-elsewhere": {"decoder_start_token_id": 259},
    "mt5": {"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"},
}


def converted(folder: Path, types: tuple[str, ...] = ("f32",), **options: Any) -> list[Path]:
    made = to_gguf(folder, folder.parent / "out", types=types, verify=False, threads=2, **options)
    return [output.path for output in made.outputs]


def assert_same_model(one: Path, other: Path) -> None:
    """The same tensors, bit for bit, and the same keys but the label that counts the checkpoint's weights."""
    headers = [read_header(path) for path in (one, other)]
    label = "general.size_label"
    keys = [{key: value for key, value in header.metadata.items() if key != label} for header in headers]
    assert keys[0] == keys[1]
    assert headers[0].tensors == headers[1].tensors
    assert one.read_bytes()[headers[0].data_offset :] == other.read_bytes()[headers[1].data_offset :]


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / name, **VARIANTS[name])
    (path,) = converted(folder)
    logits, right = t5_logits(path, SOURCE, TARGET), reference_logits(folder, SOURCE, TARGET)
    error = nmse(logits, right)
    print(f"{name}: NMSE {error:.2e}")
    assert error < 1e-4
    assert (logits.argmax(-1) == right.argmax(-1)).all()
    assert np.abs(logits - right).max() < 0.02 * right.std()


def test_a_t5_with_a_unigram_vocabulary_converts(real: Path, tmp_path: Path) -> None:
    made = to_gguf(real / "hf_t5x_tiny", tmp_path, types=("f32", "q8_0"), verify=False)
    print(f"hf_t5x_tiny: {made.parity.exact}/{made.parity.texts}, {made.parity.ties} ties")
    assert (made.parity.verdict, made.parity.candidate) == ("exact", "unigram, surplus spaces removed")
    source, target = [*range(3, 200, 3), 1], [0, *range(500, 1500, 50)]
    right = reference_logits(real / "hf_t5x_tiny", source, target)
    logits = t5_logits(made.outputs[0].path, source, target)
    assert nmse(logits, right) < 1e-4
    assert (logits.argmax(-1) == right.argmax(-1)).all()


def test_keys_are_those_llama_cpp_reads(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model", vocab_size=392, decoder_start_token_id=5, n_positions=777)
    header = read_header(converted(folder)[0])
    keys = {key.removeprefix("t5."): value for key, value in header.metadata.items() if key.startswith("t5.")}
    assert keys == {
        "block_count": 3,
        "decoder_block_count": 2,
        "context_length": 777,
        "embedding_length": 96,
        "feed_forward_length": 160,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_epsilon": pytest.approx(1e-6),
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "attention.relative_buckets_count": 32,
        "decoder_start_token_id": 5,
        "vocab_size": 392,
    }
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 392


@pytest.mark.parametrize(
    ("tokenizer", "changes", "length"),
    [
        (None, {}, 1024),
        ('{"tokenizer_class": "ByT5Tokenizer", "model_max_length": 4096}', {}, 4096),
        (
            '{"tokenizer_class": "ByT5Tokenizer", "model_max_length": 1000000000000000019884624838656}',
            {},
            1024,
        ),
        ('{"tokenizer_class": "ByT5Tokenizer", "model_max_length": -5}', {}, 1024),
        ('{"tokenizer_class": "ByT5Tokenizer", "model_max_length": 4096}', {"n_positions": 512}, 512),
        ('{"tokenizer_class": "T5Tokenizer"}', {"vocab_size": 500}, 512),
    ],
)
def test_context_length(tokenizer: str | None, changes: dict[str, Any], length: int, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model", **changes)
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(tokenizer)
    checkpoint = open_checkpoint(folder)
    assert build(family_for(checkpoint.config), checkpoint).hparams["t5.context_length"] == length


def test_a_tied_head_is_the_embedding_scaled_in_single_precision(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model", tie_word_embeddings=True, head=False)
    checkpoint = open_checkpoint(folder)
    model = build(family_for(checkpoint.config), checkpoint)
    shared = checkpoint.tensors["shared.weight"].read(0, 384)
    output = model.tensor("output.weight").read(5, 300)
    assert np.array_equal(output, shared[5:300] * np.float32(96**-0.5))
    assert [note.name for note in model.notes] == ["scaled-head"]
    assert parameters(model) == sum(tensor.elements for tensor in checkpoint.tensors.values())


def test_copies_of_the_embedding_are_dropped_if_they_are_copies(tmp_path: Path) -> None:
    weights = t5_weights(BYT5)
    copies = {
        f"{side}.embed_tokens.weight": weights["shared.weight"].clone() for side in ("encoder", "decoder")
    }
    cross = {
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": weights["shared.weight"][
            :8, :4
        ]
    }
    cross = {name: tensor.contiguous() for name, tensor in cross.items()}
    plain = converted(write_t5(tmp_path / "a" / "model", weights))[0]
    copied = converted(write_t5(tmp_path / "b" / "model", {**weights, **copies, **cross}))[0]
    assert_same_model(plain, copied)
    head = {"lm_head.weight": weights["shared.weight"].clone()}
    equal = write_t5(tmp_path / "c" / "model", {**weights, **head}, tie_word_embeddings=True)
    assert "output.weight" in {info.name for info in read_header(converted(equal)[0]).tensors}
    copies["decoder.embed_tokens.weight"][7, 7] += 1
    with pytest.raises(CheckpointError, match=r"decoder.embed_tokens.weight differs from shared.weight"):
        converted(write_t5(tmp_path / "d" / "model", {**weights, **copies}))


@pytest.mark.parametrize("kept", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_embedding_may_stand_under_any_of_its_names(kept: str, tied: bool, tmp_path: Path) -> None:
    weights = t5_weights(BYT5, head=not tied)
    usual = converted(write_t5(tmp_path / "a" / "model", weights, tie_word_embeddings=tied))[0]
    renamed = {kept if name == "shared.weight" else name: tensor for name, tensor in weights.items()}
    other = converted(write_t5(tmp_path / "b" / "model", renamed, tie_word_embeddings=tied))[0]
    assert_same_model(usual, other)


def test_aliases_of_a_bin_file_are_the_same_model(tmp_path: Path) -> None:
    import torch

    weights = t5_weights(BYT5, head=False)
    plain = converted(write_t5(tmp_path / "a" / "model", weights, tie_word_embeddings=True))[0]
    aliased = write_t5(tmp_path / "b" / "model", weights, tie_word_embeddings=True)
    (aliased / "model.safetensors").unlink()
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")
    torch.save({**weights, **dict.fromkeys(names, weights["shared.weight"])}, aliased / "pytorch_model.bin")
    assert_same_model(plain, converted(aliased)[0])


@pytest.mark.parametrize("name", ["byt5", "relu-tied", "tied-not-scaled"])
def test_the_inverse_gives_the_checkpoint_again(name: str, tmp_path: Path) -> None:
    folder = write_t5(tmp_path / name, **VARIANTS[name])
    (path,) = converted(folder)
    checkpoint = open_checkpoint(folder)
    file = open_gguf(path)
    stored = {info.name: file.tensor(info) for info in file.header.tensors}
    restored = unmapped(family_for(checkpoint.config), checkpoint, stored)
    expected = dict(checkpoint.tensors)
    if name == "relu-tied":  # the file has a head, which may be rounded otherwise than the embedding
        expected["lm_head.weight"] = checkpoint.tensors["shared.weight"]
    assert set(restored) == set(expected)
    for key, tensor in expected.items():
        wide = np.empty(tensor.shape, np.float32)
        to_float32(restored[key].read(0, tensor.rows), restored[key].dtype, wide)
        close = 1e-6 if key == "lm_head.weight" else 0.0
        np.testing.assert_allclose(wide, tensor.read(0, tensor.rows), rtol=close, atol=0)


def test_an_own_head_that_is_said_to_be_tied_is_scaled_as_transformers_does(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model", tie_word_embeddings=True)
    made = to_gguf(folder, tmp_path / "out", types=("f32",), verify=False)
    assert [note.name for note in made.notes if note.warning] == ["untied-head"]
    logits = t5_logits(made.outputs[0].path, SOURCE, TARGET)
    assert nmse(logits, reference_logits(folder, SOURCE, TARGET)) < 1e-4


def test_without_a_start_token_the_decoder_begins_with_padding(tmp_path: Path) -> None:
    folder = write_t5(tmp_path / "model", decoder_start_token_id=None, pad_token_id=2)
    made = to_gguf(folder, tmp_path / "out", verify=False)
    assert read_header(made.outputs[0].path).metadata["t5.decoder_start_token_id"] == 2
    assert "decoder-start" in [note.name for note in made.notes if note.warning]


def test_padding_does_not_count_beside_a_start_token(tmp_path: Path) -> None:
    (made,) = converted(write_t5(tmp_path / "model", decoder_start_token_id=5, pad_token_id=-1))
    assert read_header(made).metadata["t5.decoder_start_token_id"] == 5


REFUSED: dict[str, tuple[dict[str, Any], type[KconvError], str]] = {
    "distance": ({"relative_attention_max_distance": 256}, UnsupportedModel, "max_distance is 256"),
    "gated silu": ({"feed_forward_proj": "gated-silu"}, UnsupportedModel, "gated with 'silu'"),
    "plain gelu": ({"feed_forward_proj": "gelu"}, UnsupportedModel, "not gated with 'gelu'"),
    "exact gelu": ({"dense_act_fn": "gelu"}, UnsupportedModel, "gated with 'gelu'"),
    "gated relu": ({"feed_forward_proj": "gated-relu"}, UnsupportedModel, "gated with 'relu'"),
    "deep decoder": ({"num_decoder_layers": 4}, CheckpointError, "says num_decoder_layers 4"),
    "start": ({"decoder_start_token_id": 384}, CheckpointError, "decoder_start_token_id is 384"),
    "no start": ({"decoder_start_token_id": -1}, CheckpointError, "decoder_start_token_id is -1"),
    "buckets": ({"relative_attention_num_buckets": 2}, CheckpointError, "num_buckets is 2"),
    "no width": ({"d_model": None}, CheckpointError, "d_model is missing"),
    "two widths": ({"hidden_size": 64}, CheckpointError, "hidden_size is 64, expected 96, as d_model says"),
    "two depths": ({"num_hidden_layers": 9}, CheckpointError, "num_hidden_layers is 9"),
    "two numbers of heads": ({"num_attention_heads": 2}, CheckpointError, "num_attention_heads is 2"),
    "two widths of heads": ({"head_dim": 8}, CheckpointError, "head_dim is 8"),
    "heads": ({"num_heads": 5}, MappingError, "SelfAttention.q.weight"),
    "deeper": ({"num_layers": 9}, CheckpointError, "layers 0 to 2, but config.json says num_layers 9"),
    "shallower": ({"num_decoder_layers": 1}, CheckpointError, "says num_decoder_layers 1"),
    "rows": ({"vocab_size": 385}, CheckpointError, "shared.weight has 384 rows"),
    "million layers": ({"num_layers": 10**6}, CheckpointError, "num_layers 1000000"),
    "ungated weights": ({"feed_forward_proj": "relu"}, MappingError, "DenseReluDense.wi.weight"),
    "lost head": ({}, CheckpointError, "lm_head.weight is missing"),
    "bytes without rows": ({"vocab_size": 258}, KconvError, "258"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_lacks_or_makes_no_sense_is_refused(name: str, tmp_path: Path) -> None:
    changes, kind, message = REFUSED[name]
    weights = t5_weights(BYT5, head=name != "lost head")
    if name == "bytes without rows":
        weights = {
            key: value[:258].clone() if value.shape[0] == 384 else value for key, value in weights.items()
        }
    folder = write_t5(tmp_path / "model", weights, **changes)
    with pytest.raises(kind, match=message) as caught:
        converted(folder)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()
