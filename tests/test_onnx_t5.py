"""T5 as ONNX: the logits of transformers, with and without the cache, in batches with padding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_t5_material import (
    Floats,
    Ids,
    encode,
    greedy,
    prefill,
    right_logits,
    sessions,
    step_by_step,
    write,
)
from shared_material import shared
from t5_checkpoints import BYT5, t5_weights, write_t5
from t5_material import KNOWN, trained_byt5, transformers_greedy

from kconv.converters.families.t5.graphs import DECODER, DECODER_WITH_PAST, ENCODER
from kconv.converters.onnx.relative import relative_buckets
from kconv.converters.onnx.writer import DATA_NAME
from kconv.quant.formats import F16

# By name: what differs from ByT5, and whether the head is the embedding.
KINDS: Mapping[str, tuple[Mapping[str, Any], bool]] = {
    "byt5": ({}, False),
    "t5-v1.0": ({"feed_forward_proj": "relu", "tie_word_embeddings": True}, True),
    "odd": (
        {"relative_attention_num_buckets": 20, "layer_norm_epsilon": 1e-3, "num_decoder_layers": None},
        False,
    ),
    # what llama.cpp's t5 graph lacks, and ONNX has
    "deep-decoder": ({"num_layers": 1, "num_decoder_layers": 3, "feed_forward_proj": "gated-silu"}, False),
    "far": (
        {
            "relative_attention_num_buckets": 50,
            "relative_attention_max_distance": 200,
            "feed_forward_proj": "gelu",
        },
        False,
    ),
    "gated-relu": ({"feed_forward_proj": "gated-relu"}, False),
    "mt5": ({"architectures": ["MT5ForConditionalGeneration"], "model_type": "mt5"}, False),
}

IDS = np.random.default_rng(0).integers(3, 259, (3, 300))  # longer than the farthest distance, 128
TARGET = np.concatenate([np.zeros((3, 1), int), np.random.default_rng(1).integers(3, 259, (3, 139))], axis=1)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint and the folder made of it."""
    changes, tied = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = write_t5(folder / "checkpoint", head=not tied, **changes)
    return checkpoint, write(checkpoint, folder / "onnx")


def transformers_model(checkpoint: Path) -> Any:
    import torch
    import transformers

    loaded: Any = transformers.AutoModelForSeq2SeqLM.from_pretrained(checkpoint, dtype=torch.float32)
    return loaded.eval()


def assert_close(actual: Floats, right: Floats, bound: float = 1e-5) -> None:
    """Within ``bound`` of the logits' spread."""
    assert actual.shape == right.shape
    assert np.abs(actual - right).max() < bound * right.std()


def padded() -> Ids:
    """A text without padding, one padded on the right, one on the left."""
    mask = np.ones(IDS.shape, np.int64)
    mask[1, 170:] = 0
    mask[2, :33] = 0
    return mask


def test_logits_are_those_of_transformers(made: tuple[Path, Path]) -> None:
    checkpoint, folder = made
    run, mask = sessions(folder), padded()
    right = right_logits(transformers_model(checkpoint), IDS, mask, TARGET)
    assert_close(prefill(run, IDS, mask, TARGET), right)
    assert_close(step_by_step(run, IDS, mask, TARGET, 1, *[1] * 7, 5, 120, 1, 6), right)


def test_padding_changes_nothing(made: tuple[Path, Path]) -> None:
    run, mask = sessions(made[1]), padded()
    together = prefill(run, IDS, mask, TARGET)
    for row in range(len(IDS)):
        ids = IDS[row : row + 1, mask[row] == 1]
        assert_close(together[row : row + 1], prefill(run, ids, np.ones_like(ids), TARGET[row : row + 1]))


def test_files_are_sound_and_share_their_weights(made: tuple[Path, Path]) -> None:
    checkpoint, folder = made
    names = {ENCODER, DECODER, DECODER_WITH_PAST}
    assert {path.name for path in folder.iterdir()} == names | {DATA_NAME}
    for name in names:
        onnx.checker.check_model(folder / name, full_check=True)
    weights = (checkpoint / "model.safetensors").stat().st_size
    parts = sum(len(onnx.load(folder / name, load_external_data=False).graph.initializer) for name in names)
    assert weights < (folder / DATA_NAME).stat().st_size < weights + 4096 * parts


def test_names_are_those_of_optimum(tmp_path: Path) -> None:
    """optimum/onnxruntime/modeling_seq2seq.py feeds and reads by these names, the cache in this order."""
    run = sessions(write(write_t5(tmp_path / "checkpoint"), tmp_path / "onnx"))
    own = [f"{layer}.decoder.{kind}" for layer in range(2) for kind in ("key", "value")]
    both = [
        f"{layer}.{side}.{kind}"
        for layer in range(2)
        for side in ("decoder", "encoder")
        for kind in ("key", "value")
    ]
    assert inputs(run[ENCODER]) == {"input_ids", "attention_mask"}
    assert outputs(run[ENCODER]) == ["last_hidden_state"]
    assert inputs(run[DECODER]) == {"input_ids", "encoder_attention_mask", "encoder_hidden_states"}
    assert outputs(run[DECODER]) == ["logits", *(f"present.{name}" for name in both)]
    given = [each.name for each in run[DECODER_WITH_PAST].get_inputs()]
    past = [f"past_key_values.{name}" for name in both]
    assert given == ["input_ids", "encoder_attention_mask", *past]
    assert outputs(run[DECODER_WITH_PAST]) == ["logits", *(f"present.{name}" for name in own)]


def inputs(session: Any) -> set[str]:
    return {each.name for each in session.get_inputs()}


def outputs(session: Any) -> list[str]:
    return [each.name for each in session.get_outputs()]


@pytest.mark.parametrize("buckets", [4, 20, 32, 33, 64, 255])
@pytest.mark.parametrize("both_ways", [True, False])
def test_buckets_are_those_of_transformers(buckets: int, both_ways: bool) -> None:
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-128, 129)
    right = T5Attention._relative_position_bucket(distances, both_ways, buckets, 128)
    assert relative_buckets(buckets, 128, both_ways=both_ways).tolist() == right.tolist()
    beyond = T5Attention._relative_position_bucket(
        torch.tensor([-5000, -129, 129, 5000]), both_ways, buckets, 128
    )
    assert beyond.tolist() == right[[0, 0, -1, -1]].tolist()


def test_a_trained_model_says_what_it_has_learned(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkpoint = shared(tmp_path_factory, "trained-byt5", trained_byt5)
    run = sessions(write(checkpoint, tmp_path / "onnx"))
    for source, answer in KNOWN:
        assert greedy(run, np.array([source]), 40) == answer


def test_128_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    weights = t5_weights(BYT5, seed=3)
    weights["lm_head.weight"][1] = 0  # never the end
    weights["lm_head.weight"] *= 4
    checkpoint = write_t5(tmp_path / "checkpoint", weights)
    run = sessions(write(checkpoint, tmp_path / "onnx"))
    ids = list(range(3, 60))
    tokens = greedy(run, np.array([ids]), 128)
    assert tokens == transformers_greedy(checkpoint, ids, 128)
    assert len(tokens) == 128
    assert len(set(tokens)) > 5


def test_float16_but_for_what_overflows(tmp_path: Path) -> None:
    """Matrices in float16, T5's wo and vectors in float32: values beyond 65504 between layers do no harm."""
    weights = t5_weights(BYT5)
    for name, weight in weights.items():
        if name.startswith("encoder") and name.endswith("wo.weight"):
            weight *= 5e5
    checkpoint = write_t5(tmp_path / "checkpoint", weights)
    stored = {name: F16 for name, weight in weights.items() if weight.ndim == 2 and not keeps_float32(name)}
    folder = write(checkpoint, tmp_path / "onnx", stored)
    assert (folder / DATA_NAME).stat().st_size < 0.75 * (checkpoint / "model.safetensors").stat().st_size
    ids, target = IDS[:1, :60], TARGET[:1, :20]
    right = right_logits(transformers_model(checkpoint), ids, np.ones_like(ids), target)
    assert_close(prefill(sessions(folder), ids, np.ones_like(ids), target), right, 0.02)


def keeps_float32(name: str) -> bool:
    return name.endswith(("wo.weight", "relative_attention_bias.weight"))


def test_encoder_alone(tmp_path: Path) -> None:
    import torch

    checkpoint = write_t5(tmp_path / "checkpoint")
    run, mask = sessions(write(checkpoint, tmp_path / "onnx")), padded()
    with torch.no_grad():
        right = (
            transformers_model(checkpoint).encoder(torch.from_numpy(IDS), torch.from_numpy(mask))[0].numpy()
        )
    ids = encode(run, IDS, mask)
    assert np.abs(ids - right)[mask == 1].max() < 1e-5
