"""A front end's settings: from config.json alone, and held against the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from gbst_material import CONFIG, config_settings

from kconv.converters.families.gbst.settings import (
    CONVOLUTION,
    EMBEDDING,
    NORM,
    PROJECTION,
    SCORE,
    SHARED,
    GbstSettings,
    read_settings,
)
from kconv.converters.settings import Settings
from kconv.core.errors import CheckpointError, UnsupportedModel
from kconv.core.tensor import DType, Tensor

EXPECTED = GbstSettings((1, 2, 3, 6, 9), 3, consensus=True, norm=False, width=64, rows=384)


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(
        name, shape, DType.F32, lambda start, stop: np.zeros((stop - start, *shape[1:]), np.float32)
    )


def tensors(settings: GbstSettings = EXPECTED, **changes: tuple[int, ...] | None) -> dict[str, Tensor]:
    shapes: Mapping[str, tuple[int, ...] | None] = {**settings.shapes(), **changes}
    return {name: tensor(name, shape) for name, shape in shapes.items() if shape is not None}


def read(stored: dict[str, Tensor] | None = None, **changes: Any) -> GbstSettings:
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value != "missing"}
    return read_settings(Settings(config, "config.json"), tensors() if stored is None else stored)


def test_published_settings_are_read() -> None:
    assert read() == EXPECTED == config_settings()
    assert (EXPECTED.kernel, EXPECTED.period) == (9, 18)


def test_sizes_without_offsets_and_the_largest_size_alone_are_read() -> None:
    assert read(subword_blocks=[1, 2, 3, 6, 9]) == EXPECTED
    four = replace(EXPECTED, blocks=(1, 2, 3, 4))
    assert read(tensors(four), subword_blocks=None, max_subword_block_size=4) == four


def test_a_checkpoint_older_than_the_option_has_no_batch_norm() -> None:
    assert read(gbst_batchnorm="missing") == EXPECTED
    assert read(max_subword_block_size="missing") == EXPECTED
    normed = replace(EXPECTED, norm=True)
    assert (
        read(tensors(normed), gbst_batchnorm="missing")
        == normed
        == read(tensors(normed), gbst_batchnorm=True)
    )


@pytest.mark.parametrize("name", SHARED)
def test_the_embedding_may_stand_under_the_shared_name(name: str) -> None:
    stored = tensors(**{EMBEDDING: None, name: (384, 64)})
    assert read(stored) == EXPECTED


@pytest.mark.parametrize(
    "key", ["subword_blocks", "downsample_factor", "score_consensus_attn", "d_model", "vocab_size"]
)
def test_nothing_is_taken_for_granted(key: str) -> None:
    with pytest.raises(CheckpointError, match=f"{key} is missing, expected"):
        read(**{key: "missing"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subword_blocks", []),
        ("subword_blocks", "1,2"),
        ("subword_blocks", [[1, 0, 0]]),
        ("subword_blocks", [[0, 0]]),
        ("subword_blocks", [[True, 0]]),
        ("subword_blocks", [[1.5, 0]]),
        ("subword_blocks", [[-3, 0]]),
        ("subword_blocks", [[10**12, 0]]),
        ("subword_blocks", [[1, 0]] * 65),
        ("subword_blocks", {"1": 0}),
        ("subword_blocks", [[1, None]]),
        ("downsample_factor", 0),
        ("downsample_factor", 10),  # the original asks for at most the largest block
        ("downsample_factor", "3"),
        ("score_consensus_attn", "yes"),
        ("gbst_batchnorm", 1),
        ("d_model", 0),
    ],
)
def test_values_that_make_no_sense_are_refused(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=key) as caught:
        read(**{key: value})
    assert caught.value.exit_code == 3


def test_blocks_with_an_offset_are_refused() -> None:
    with pytest.raises(UnsupportedModel, match="block of 3 with offset 1") as caught:
        read(subword_blocks=[[1, 0], [2, 0], [3, 1], [6, 0], [9, 0]])
    assert caught.value.exit_code == 3


def test_blocks_given_twice_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"subword_blocks .* and max_subword_block_size 9"):
        read(max_subword_block_size=9)


def test_blocks_that_hardly_ever_meet_are_refused() -> None:
    blocks = [7, 11, 13, 17, 19]
    with pytest.raises(CheckpointError, match="every 969969 positions"):
        read(subword_blocks=blocks)


@pytest.mark.parametrize(
    ("changes", "changed", "words"),
    [
        ({"subword_blocks": [[1, 0], [2, 0]], "downsample_factor": 2}, {},
         ["largest block of subword_blocks [1, 2] is 2", "convol.weight is [64, 1, 9]"]),
        ({}, {CONVOLUTION + "weight": (64, 1, 4)},
         ["[1, 2, 3, 6, 9] is 9", "is [64, 1, 4], a convolution over 4 positions"]),
        ({}, {CONVOLUTION + "weight": (64, 64, 9)}, ["[64, 64, 9]", "depth-wise convolution, [64, 1, 9]"]),
        ({"d_model": 32}, {}, ["d_model 32", "[384, 32]", "[384, 64]"]),
        ({"vocab_size": 259}, {}, ["vocab_size 259", "[259, 64]", "[384, 64]"]),
        ({}, {CONVOLUTION + "weight": (64, 9)}, ["[64, 1, 9]", "[64, 9]"]),
        ({}, {PROJECTION + "weight": (64, 64)}, ["[64, 64, 1]", "is [64, 64]"]),
        ({}, {PROJECTION + "weight": (64, 32, 1)}, ["[64, 64, 1]", "[64, 32, 1]"]),
        ({}, {SCORE + "weight": (5, 64)}, ["cand_scoring.0.weight [1, 64]", "[5, 64]"]),
        ({}, {SCORE + "bias": None}, ["cand_scoring.0.bias [1] is missing"]),
        ({}, {EMBEDDING: None}, ["embeds.weight [384, 64] is missing"]),
        ({}, {CONVOLUTION + "weight": None}, ["convol.weight [64, 1, 9] is missing"]),
        ({"gbst_batchnorm": True}, {}, ["gbst_batchnorm is true", "bn.weight"]),
        ({}, {NORM + "weight": (64,)}, ["gbst_batchnorm is false", "bn.weight"]),
        ({"gbst_batchnorm": True}, {NORM + "weight": (64,)}, ["bn.bias [64] is missing"]),
    ],
)  # fmt: skip
def test_a_config_that_contradicts_the_tensors_is_refused_naming_both(
    changes: dict[str, Any], changed: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tensors(**changed), **changes)
    for word in words:
        assert word in caught.value.message
    assert caught.value.hint
