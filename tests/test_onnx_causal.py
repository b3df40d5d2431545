"""Llama and GPT-J as ONNX: the logits of transformers, with and without the cache, in padded batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gguf.quants import GGMLQuantizationType, dequantize, quantize
from gptj_material import random_gptj
from llama_material import random_llama, transformers_logits
from onnx_causal_material import Floats, Ids, described, greedy, in_steps, run, session, write

from kconv.converters.samples import write_sample
from kconv.quant.formats import FORMATS

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
GROUPED = {
    "num_key_value_heads": 2,
    "attention_bias": True,
    "mlp_bias": True,
    "head_dim": 24,
    "tie_word_embeddings": True,
}
KINDS: Mapping[str, Callable[..., Path]] = {
    "llama": random_llama,
    "llama-grouped": partial(random_llama, **GROUPED),
    "llama-3.1": partial(random_llama, rope_parameters=LLAMA3),
    "llama-linear": partial(
        random_llama, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    # activations llama.cpp's graphs lack
    "llama-gelu": partial(random_llama, hidden_act="gelu"),
    "llama-quick-gelu": partial(random_llama, hidden_act="quick_gelu"),
    "llama-relu2": partial(random_llama, hidden_act="relu2"),
    "gptj-relu": partial(random_gptj, activation_function="relu"),
    "gptj": random_gptj,
    "gptj-tied": partial(random_gptj, tie_word_embeddings=True, weights="safetensors"),
    "gptj-all-rotated": partial(random_gptj, rotary_dim=32, n_inner=200),
}
TYPES = {"q8_0": GGMLQuantizationType.Q8_0, "q4_0": GGMLQuantizationType.Q4_0}
# What issue 6 asks for. Measured: up to 2.6e-5; transformers' fp32 is up to 1.5e-5 from its own fp64 on the
# GPT-J here.
CLOSE = 1e-4
IDS = np.random.default_rng(0).integers(3, 300, (1, 150))


@pytest.fixture(scope="module", params=KINDS)
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, small_tokenizer: Path
) -> tuple[Path, Path]:
    """A checkpoint and the ONNX file made of it."""
    folder, make = tmp_path_factory.mktemp(request.param), KINDS[request.param]
    llama = request.param.startswith("llama")
    checkpoint = make(folder / "checkpoint", *([small_tokenizer] if llama else []))
    return checkpoint, write(checkpoint, folder / "onnx")


@pytest.fixture(scope="module")
def right(made: tuple[Path, Path]) -> Floats:
    """Transformers' logits of IDS."""
    return transformers_logits(made[0], IDS[0].tolist())


@pytest.fixture(scope="module")
def model(made: tuple[Path, Path]) -> Any:
    return session(made[1])


def test_logits_are_those_of_transformers(model: Any, right: Floats) -> None:
    assert far(run(model, IDS)[0][0], right) < CLOSE


def test_cached_reading_gives_the_same(model: Any, right: Floats) -> None:
    assert far(in_steps(model, IDS, *[1] * 150)[0], right) < CLOSE
    assert far(in_steps(model, IDS, 40, 1, 100, 9)[0], right) < CLOSE


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_padded_batch_gives_what_each_text_gives(model: Any, right: Floats, left: bool) -> None:
    lengths = (150, 61, 1)
    ids, mask, positions = padded(lengths, left=left)
    logits, _ = run(model, ids, mask=mask, positions=positions)
    assert np.isfinite(logits).all()
    for row, length, places in zip(logits, lengths, mask.astype(bool), strict=True):
        assert far(row[places], right[:length]) < CLOSE


@pytest.mark.parametrize("left", [True, False], ids=["left", "right"])
def test_a_padded_batch_goes_on_through_the_cache(model: Any, right: Floats, left: bool) -> None:
    lengths = np.array([140, 61, 1])
    ids, mask, positions = padded(lengths, left=left)
    _, past = run(model, ids, mask=mask, positions=positions)
    for step in range(3):
        mask = np.concatenate([mask, np.ones((3, 1), np.int64)], axis=1)
        places = lengths[:, None] + step
        logits, past = run(model, IDS[0][places], past, mask=mask, positions=places)
        assert far(logits[:, 0], right[places[:, 0]]) < CLOSE


def test_onnx_finds_the_files_sound(made: tuple[Path, Path]) -> None:
    onnx.checker.check_model(str(made[1]), full_check=True)
    bare = onnx.load_model(made[1], load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) == sum(len(node.output) for node in bare.graph.node) - len(
        bare.graph.output
    )


def test_every_tensor_of_the_checkpoint_is_an_initializer_of_its_name(made: tuple[Path, Path]) -> None:
    names = {each.name for each in onnx.load_model(made[1], load_external_data=False).graph.initializer}
    tensors = described(made[0]).tensors
    assert {name for name in names if not name.startswith("constant_")} == set(tensors)


def test_names_are_those_of_optimum(model: Any) -> None:
    layers = range(len(model.get_outputs()) // 2)
    cache = [f"{i}.{kind}" for i in layers for kind in ("key", "value")]
    first = ["input_ids", "attention_mask", "position_ids"]
    assert [each.name for each in model.get_inputs()] == first + [f"past_key_values.{each}" for each in cache]
    assert [each.name for each in model.get_outputs()] == ["logits", *(f"present.{each}" for each in cache)]


@pytest.mark.parametrize("family", ["42dot", "kogpt", "eagle", "llama-3-ko"])
def test_128_greedy_tokens_of_a_sample_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = write_sample(family, tmp_path / "checkpoint")
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompt = np.array([[5, 300, 17, 40]])
    settings = {"do_sample": False, "max_new_tokens": 128, "min_new_tokens": 128, "eos_token_id": None}
    given = torch.from_numpy(prompt)
    expected = reference.generate(given, attention_mask=torch.ones_like(given), pad_token_id=0, **settings)
    tokens = greedy(session(write(checkpoint, tmp_path / "onnx")), prompt, 128)
    assert tokens == expected[0, 4:].tolist()


def test_a_layer_of_full_width(tmp_path: Path, small_tokenizer: Path) -> None:
    width = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16}
    checkpoint = random_llama(
        tmp_path / "wide", small_tokenizer, num_hidden_layers=1, num_key_value_heads=4, **width
    )
    model = session(write(checkpoint, tmp_path / "onnx"))
    right = transformers_logits(checkpoint, IDS[0, :24].tolist())
    assert far(in_steps(model, IDS[:, :24], 20, 4)[0], right) < CLOSE


@pytest.mark.parametrize("name", ["q8_0", "q4_0"])
def test_a_tied_matrix_in_blocks_embeds_and_makes_the_logits(
    name: str, tmp_path: Path, small_tokenizer: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = random_llama(tmp_path / "tied", small_tokenizer, tie_word_embeddings=True)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    table = reference.model.embed_tokens.weight
    with torch.no_grad():
        blocks = quantize(table.numpy(), TYPES[name])
        table.copy_(torch.from_numpy(dequantize(blocks, TYPES[name])))
        right = reference(torch.from_numpy(IDS)).logits[0].numpy()
    path = write(checkpoint, tmp_path / "onnx", {"model.embed_tokens.weight": FORMATS[name]})
    model = session(path)
    assert far(run(model, IDS)[0][0], right) < CLOSE
    names = {each.name for each in onnx.load_model(path, load_external_data=False).graph.initializer}
    stored = {"model.embed_tokens.weight.blocks", "model.embed_tokens.weight.scales"}
    assert {each for each in names if "embed_tokens" in each} == stored


def padded(lengths: Any, *, left: bool) -> tuple[Ids, Ids, Ids]:
    """The beginnings of IDS in a batch: ids, mask, positions."""
    longest = max(lengths)
    ids, mask = np.full((len(lengths), longest), 7), np.zeros((len(lengths), longest), np.int64)
    for row, length in enumerate(lengths):
        place = slice(longest - length, None) if left else slice(length)
        ids[row, place], mask[row, place] = IDS[0, :length], 1
    return ids, mask, np.maximum(mask.cumsum(axis=1) - 1, 0)


def far(actual: Floats, right: Floats) -> float:
    """The largest difference, relative to the spread of what is right."""
    return float(np.abs(actual - right).max() / right.std())
