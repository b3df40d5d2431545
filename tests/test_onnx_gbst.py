"""GBST-KEByT5 as ONNX: front end, encoder and decoder together against the reference in torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from gbst_material import CONFIG, random_gbswt5, random_model
from onnx_t5_material import (
    Floats,
    Ids,
    Sessions,
    encode,
    graphs,
    greedy,
    prefill,
    right_logits,
    sessions,
    step_by_step,
    write,
)

from kconv.converters.families.t5.graphs import DECODER, DECODER_WITH_PAST, ENCODER
from kconv.core.errors import CheckpointError
from kconv.core.reading import open_checkpoint

# By name: what differs from GBST-KEByT5-large's settings.
KINDS: Mapping[str, Mapping[str, Any]] = {
    "large": {},
    "six-fold": {"downsample_factor": 6},
    "sizes-and-norm": {
        "subword_blocks": [[1, 0], [2, 0], [3, 0], [4, 0]],
        "downsample_factor": 2,
        "gbst_batchnorm": True,
    },
    "no-consensus": {
        "score_consensus_attn": False,
        "subword_blocks": [[2, 0], [5, 0]],
        "downsample_factor": 4,
    },
    "same-length": {"downsample_factor": 1},
}

IDS = np.random.default_rng(0).integers(3, 259, (3, 200))  # 200 is a multiple of no factor but 1, 2 and 4
TARGET = np.concatenate([np.zeros((3, 1), int), np.random.default_rng(1).integers(3, 259, (3, 19))], axis=1)


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Sessions]:
    """The reference and the graphs made of the same checkpoint, which are sound."""
    changes = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = random_gbswt5(folder / "checkpoint", **changes)
    written = write(checkpoint, folder / "onnx")
    for name in (ENCODER, DECODER, DECODER_WITH_PAST):
        onnx.checker.check_model(written / name, full_check=True)
    return random_model({**CONFIG, **changes}, alone=True), sessions(written)


def padded() -> Ids:
    """A text without padding, one padded on the right, one on the left."""
    mask = np.ones(IDS.shape, np.int64)
    mask[1, 127:] = 0
    mask[2, :34] = 0
    return mask


def assert_close(actual: Floats, right: Floats) -> None:
    assert actual.shape == right.shape
    assert np.abs(actual - right).max() < 1e-4 * right.std()


def test_logits_are_those_of_the_reference(made: tuple[Any, Sessions]) -> None:
    (model, run), mask = made, padded()
    right = right_logits(model, IDS, mask, TARGET)
    assert_close(prefill(run, IDS, mask, TARGET), right)
    assert_close(step_by_step(run, IDS, mask, TARGET, 1, 1, 1, 7, 1, 9), right)


def test_padding_on_the_right_changes_nothing(made: tuple[Any, Sessions]) -> None:
    (_, run), mask = made, padded()
    together = prefill(run, IDS, mask, TARGET)
    ids = IDS[1:2, :127]
    assert_close(together[1:2], prefill(run, ids, np.ones_like(ids), TARGET[1:2]))


def test_short_texts(made: tuple[Any, Sessions]) -> None:
    model, run = made
    for length in (1, 2, 3, 8, 9, 10, 18, 19):
        ids, mask = IDS[:1, :length], np.ones((1, length), np.int64)
        assert_close(prefill(run, ids, mask, TARGET[:1]), right_logits(model, ids, mask, TARGET[:1]))


def test_128_greedy_tokens_are_those_of_the_reference(made: tuple[Any, Sessions]) -> None:
    (model, run), ids = made, IDS[:1, :97]
    tokens = greedy(run, ids, 128)
    target = np.array([[0, *tokens[:-1]]])  # if each token is the likeliest after those before, all are
    assert right_logits(model, ids, np.ones_like(ids), target)[0].argmax(-1).tolist() == tokens
    assert len(tokens) == 128
    assert len(set(tokens)) > 5


def test_lengths_follow_from_their_names(made: tuple[Any, Sessions]) -> None:
    """Optimum evaluates the names of axes to bind the results' buffers (optimum/onnxruntime/base.py)."""
    run, mask = made[1], padded()
    shape = next(each.shape for each in run[ENCODER].get_outputs())
    words = [str(IDS.shape[1]) if word == "encoder_sequence_length" else word for word in shape[1].split(" ")]
    assert eval(" ".join(words)) == encode(run, IDS, mask).shape[1]


def test_the_embedding_under_the_front_ends_name(tmp_path: Path) -> None:
    shared = ("shared.weight", "decoder.embed_tokens.weight")
    run = sessions(write(random_gbswt5(tmp_path / "checkpoint", drop=shared), tmp_path / "onnx"))
    right = right_logits(random_model(CONFIG, alone=True), IDS, padded(), TARGET)
    assert_close(prefill(run, IDS, padded(), TARGET), right)


def test_two_embeddings_are_refused(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(random_gbswt5(tmp_path / "checkpoint"))
    other = {"shared.weight": replace(checkpoint.tensors["lm_head.weight"], name="shared.weight")}
    with pytest.raises(CheckpointError, match=r"differs from shared\.weight"):
        graphs(replace(checkpoint, tensors={**checkpoint.tensors, **other}))


def test_full_width(tmp_path: Path) -> None:
    """One layer a side as wide as GBST-KEByT5-large's."""
    wide = {"d_model": 1536, "d_kv": 64, "d_ff": 3840, "num_heads": 16, "num_layers": 1}
    wide["num_decoder_layers"] = 1
    run = sessions(write(random_gbswt5(tmp_path / "checkpoint", **wide), tmp_path / "onnx"))
    right = right_logits(random_model({**CONFIG, **wide}, alone=True), IDS, padded(), TARGET)
    assert_close(prefill(run, IDS, padded(), TARGET), right)
    assert_close(step_by_step(run, IDS, padded(), TARGET, 1, 1, 9, 9), right)
