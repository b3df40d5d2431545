"""GBST in numpy and in torch: small cases by hand, each step by itself, and each against the other."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from gbst_material import SMALL, random_front_end, random_weights, torch_front_end
from hypothesis import given, settings
from hypothesis import strategies as st

from kconv.converters.families.gbst import front_end as gbst
from kconv.converters.families.gbst.settings import (
    CONVOLUTION,
    EMBEDDING,
    NORM,
    PROJECTION,
    SCORE,
    GbstSettings,
)
from kconv.core.errors import InputError

Floats = npt.NDArray[np.float32]


def floats(*values: object) -> Floats:
    return np.array(values, np.float32)


# Width 1, embeddings that are the ids' own numbers, a convolution that adds each position and the next.
SIMPLE = GbstSettings((1, 2), 2, consensus=False, norm=False, width=1, rows=10)
SIMPLE_WEIGHTS = {
    EMBEDDING: np.arange(10, dtype=np.float32)[:, None],
    CONVOLUTION + "weight": floats([[1, 1]]),
    CONVOLUTION + "bias": floats(0),
    PROJECTION + "weight": floats([[1]]),
    PROJECTION + "bias": floats(0),
    SCORE + "weight": floats([0]),
    SCORE + "bias": floats(0),
}


def simple(**changes: Floats) -> dict[str, Floats]:
    names = {"score": SCORE + "weight", "bias": CONVOLUTION + "bias"}
    return SIMPLE_WEIGHTS | {names[key]: value for key, value in changes.items()}


def both(
    front: GbstSettings, weights: dict[str, Floats], ids: list[int], mask: list[int] | None
) -> tuple[Floats, list[bool]]:
    """What numpy gives, after torch has given the same; without a mask where ``mask`` is None."""
    import torch

    module = torch_front_end(front, weights)
    given_mask = None if mask is None else torch.tensor([mask])
    with torch.no_grad():
        values, kept = module(torch.tensor([ids]), given_mask)
    if mask is None:
        ours = gbst.embed_without_mask(gbst.front_end(front, weights), ids)
        assert kept is None
        np.testing.assert_allclose(ours, values[0].numpy(), atol=1e-6)
        return ours, []
    made = gbst.embed(gbst.front_end(front, weights), ids, np.array(mask, np.bool_))
    np.testing.assert_allclose(made.values, values[0].numpy(), atol=1e-6)
    assert made.mask.tolist() == kept[0].tolist()
    return made.values, made.mask.tolist()


def test_by_hand_equal_scores_down_sampled_by_two() -> None:
    # ids 1 2 3: sums of neighbours 3 5 3 (zero comes last); blocks of two: (3+5)/2 = 4, and 3 alone.
    # scores are all equal, so half of each: (3+4)/2, (5+4)/2, (3+3)/2; pairs: mean 4, and 3 alone.
    values, mask = both(SIMPLE, simple(), [1, 2, 3], [1, 1, 1])
    assert values.tolist() == [[4.0], [3.0]]
    assert mask == [True, True]


def test_by_hand_a_missing_mask_counts_the_appended_zero() -> None:
    # as above, but the last block of two is (3+0)/2 = 1.5, its position (3+1.5)/2 = 2.25, the zero after it
    # (0+1.5)/2 = 0.75, and their mean 1.5
    values, _ = both(SIMPLE, simple(), [1, 2, 3], None)
    assert values.tolist() == [[4.0], [1.5]]


def test_by_hand_padding_leaks_through_the_convolution_and_no_further() -> None:
    # the padding is id 5: the last position of the text becomes 3+5 = 8; alone in its block, in pairs alone
    values, mask = both(SIMPLE, simple(), [1, 2, 3, 5, 5, 5], [1, 1, 1, 0, 0, 0])
    assert values.tolist() == [[4.0], [8.0], [0.0]]
    assert mask == [True, True, False]


def test_by_hand_scores_choose_between_block_sizes() -> None:
    # a score of ln 3 a unit: at the first position candidates 3 and 4 weigh 3^3 to 3^4, so 1/4 and 3/4;
    # at the second 5 and 4, so 3/4 and 1/4; the mean of 3.75 and 4.75 is 4.25. The last: 3 and 3.
    values, _ = both(SIMPLE, simple(score=floats([math.log(3)])), [1, 2, 3], [1, 1, 1])
    np.testing.assert_allclose(values, [[4.25], [3.0]], rtol=1e-6)


def test_by_hand_consensus_averages_scores_over_like_positions() -> None:
    front = replace(SIMPLE, consensus=True, factor=1)
    values, _ = both(front, simple(score=floats([math.log(3)])), [1, 2], [1, 1])
    # sums 3 and 2, their block 2.5: the scores differ by half a unit, one way and the other, so the first
    # position takes a share w of its own sum and 1 - w of the block, the second 1 - w and w
    w = math.sqrt(3) / (1 + math.sqrt(3))
    like, unlike = math.exp(w * w + (1 - w) ** 2), math.exp(2 * w * (1 - w))
    share = (like * w + unlike * (1 - w)) / (like + unlike)
    expected = [[share * 3 + (1 - share) * 2.5], [(1 - share) * 2 + share * 2.5]]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_step_one_is_a_convolution_forwards_then_a_projection() -> None:
    front = random_front_end(SMALL)
    weights = random_weights(SMALL)
    ids = np.array([3, 7, 1, 19, 0])
    embedded = np.concatenate([weights[EMBEDDING][ids], np.zeros((2, 8), np.float32)]).astype(np.float64)
    kernel = weights[CONVOLUTION + "weight"][:, 0].astype(np.float64)
    expected = np.empty((5, 8))
    for position in range(5):
        for channel in range(8):
            reached = embedded[position : position + 3, channel]
            expected[position, channel] = reached @ kernel[channel] + weights[CONVOLUTION + "bias"][channel]
    expected = expected @ weights[PROJECTION + "weight"][:, :, 0].T.astype(np.float64)
    expected += weights[PROJECTION + "bias"]
    np.testing.assert_allclose(gbst.convolved(front, ids, 0, 5), expected, atol=2e-6)
    pieces = [gbst.convolved(front, ids, start, start + 1) for start in range(5)]
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=2e-6)
    assert not gbst.convolved(front, ids, 4, 8)[1:].any()  # zeros after the end, not the biases


def test_step_one_with_a_batch_norm_between_the_convolutions() -> None:
    front = replace(SMALL, norm=True)
    weights = random_weights(front)
    ids = np.array([3, 7, 1])
    plain = {name: value for name, value in weights.items() if not name.startswith(NORM)}
    plain[PROJECTION + "weight"] = np.eye(8, dtype=np.float32)[:, :, None]
    plain[PROJECTION + "bias"] = np.zeros(8, np.float32)
    before = gbst.convolved(gbst.front_end(SMALL, plain), ids, 0, 3)
    norm = {key: weights[NORM + key] for key in ("weight", "bias", "running_mean", "running_var")}
    between = (before - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm[
        "bias"
    ]
    expected = between @ weights[PROJECTION + "weight"][:, :, 0].T + weights[PROJECTION + "bias"]
    np.testing.assert_allclose(gbst.convolved(gbst.front_end(front, weights), ids, 0, 3), expected, atol=5e-6)


def test_step_two_is_a_mean_over_the_positions_within_the_mask() -> None:
    values, valid = floats([1], [2], [4], [8], [16]), np.array([1, 0, 1, 1, 1], np.bool_)
    ones, twos, threes = gbst.block_means(SMALL, values, valid)
    assert ones.tolist() == [[1.0], [0.0], [4.0], [8.0], [16.0]]
    assert twos.tolist() == [[1.0], [6.0], [16.0]]
    assert threes.tolist() == [[2.5], [12.0]]


def test_step_three_scores_each_block_once_for_all_its_positions() -> None:
    front = random_front_end(SMALL)
    means = gbst.block_means(
        SMALL, np.random.default_rng(1).standard_normal((5, 8), np.float32), np.ones(5, bool)
    )
    scores = gbst.block_scores(front, means, 5)
    for column, size in enumerate(SMALL.blocks):
        for position in range(5):
            expected = means[column][position // size] @ front.score + front.score_bias
            assert scores[position, column] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [1, 7, 1500])  # the last is worked through in pieces
def test_step_four_is_the_softmax_of_all_products(length: int) -> None:
    generator = np.random.default_rng(2)
    weights = generator.dirichlet(np.ones(4), length).astype(np.float32)
    products = np.exp(weights.astype(np.float64) @ weights.T)
    expected = products / products.sum(axis=1, keepdims=True) @ weights
    np.testing.assert_allclose(gbst.consensus(weights.copy()), expected, atol=1e-6)


def test_step_five_mixes_candidates_and_pools_them() -> None:
    means = [floats([1], [2], [3]), floats([10], [20]), floats([100])]
    weights = floats([0.5, 0.5, 0], [0, 1, 0], [0.25, 0.25, 0.5])
    mixed = gbst.mixture(replace(SMALL, width=1), means, weights)
    assert mixed.tolist() == [[5.5], [10.0], [55.75]]
    pooled, seen = gbst.pool(mixed, np.array([1, 1, 0], np.bool_), 2)
    assert pooled.tolist() == [[7.75], [0.0]]
    assert seen.tolist() == [True, False]


BLOCKS = [(1,), (1, 2), (1, 2, 3), (2, 3), (3, 1), (4, 2, 1), (1, 2, 3, 6, 9), (1, 2, 3, 4, 6, 9), (2, 2, 5)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[GbstSettings, list[list[int]], list[list[int]] | None, int]:
    blocks = draw(st.sampled_from(BLOCKS))
    front = GbstSettings(
        blocks,
        draw(st.integers(1, max(blocks))),
        draw(st.booleans()),
        draw(st.booleans()),
        draw(st.sampled_from([1, 4, 7, 16])),
        draw(st.sampled_from([2, 20])),
    )
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 45))
    row = st.lists(st.integers(0, front.rows - 1), min_size=length, max_size=length)
    bits = st.lists(st.integers(0, 1), min_size=length, max_size=length)
    ends = st.integers(0, length).map(lambda end: [1] * end + [0] * (length - end))
    masks = st.lists(st.one_of(bits, ends), min_size=batch, max_size=batch)
    ids = draw(st.lists(row, min_size=batch, max_size=batch))
    return front, ids, draw(st.none() | masks), draw(st.integers(0, 1000))


@settings(max_examples=100, deadline=None)
@given(cases())
def test_numpy_and_torch_agree_on_any_shape_and_mask(
    case: tuple[GbstSettings, list[list[int]], list[list[int]] | None, int],
) -> None:
    import torch

    front, ids, masks, seed = case
    weights = random_weights(front, seed)
    with torch.no_grad():
        values, kept = torch_front_end(front, weights)(
            torch.tensor(ids), None if masks is None else torch.tensor(masks)
        )
    ours = gbst.front_end(front, weights)
    scale = 1 + float(values.abs().max())
    for row, tokens in enumerate(ids):
        if masks is None:
            made = gbst.embed_without_mask(ours, tokens)
        else:
            embedded = gbst.embed(ours, tokens, np.array(masks[row], np.bool_))
            made = embedded.values
            assert embedded.mask.tolist() == kept[row].tolist()
        assert made.shape == (-(-len(tokens) // front.factor), front.width)
        np.testing.assert_allclose(made, values[row].numpy(), atol=3e-6 * scale)  # measured: 2.8e-7


def test_no_mask_given_to_numpy_is_a_mask_of_ones() -> None:
    front, ids = random_front_end(SMALL), [1, 2, 3, 4, 5]
    assert np.array_equal(gbst.embed(front, ids).values, gbst.embed(front, ids, [True] * 5).values)
    assert not np.allclose(gbst.embed(front, ids).values, gbst.embed_without_mask(front, ids), atol=1e-3)


def test_a_text_masked_out_altogether_is_zeros() -> None:
    made = gbst.embed(random_front_end(SMALL), [1, 2, 3], [False] * 3)
    assert not made.values.any()
    assert made.mask.tolist() == [False, False]


@pytest.mark.parametrize("length", [1, 2, 17, 18, 19])
def test_published_blocks_at_the_full_width(length: int) -> None:
    import torch

    front = GbstSettings((1, 2, 3, 6, 9), 3, consensus=True, norm=False, width=1536, rows=384)
    weights = random_weights(front)
    ids = np.random.default_rng(length).integers(0, 384, length)
    made = gbst.embed(gbst.front_end(front, weights), ids.tolist())
    with torch.no_grad():
        values, _ = torch_front_end(front, weights)(torch.tensor(ids)[None], torch.ones(1, length))
    assert made.values.shape == (-(-length // 3), 1536)
    assert made.mask.all()
    np.testing.assert_allclose(made.values, values[0].numpy(), atol=5e-5)  # measured: 6.4e-6


def test_a_long_text_costs_tens_of_megabytes_and_pieces_change_nothing() -> None:
    import torch

    front = GbstSettings((1, 2, 3, 6, 9), 3, consensus=True, norm=False, width=384, rows=384)
    weights = random_weights(front)
    ids = np.random.default_rng(0).integers(0, 384, 6800).tolist()
    ours = gbst.front_end(front, weights)
    tracemalloc.start()
    made = gbst.embed(ours, ids)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # the result takes 3.5 MB; at width 1536 it takes 14 and the peak measured is 31. The products of all
    # positions alone would be 185.
    assert peak < 24e6
    with torch.no_grad():
        values, _ = torch_front_end(front, weights)(torch.tensor([ids]), torch.ones(1, 6800))
    np.testing.assert_allclose(made.values, values[0].numpy(), atol=5e-5)  # measured: 7e-6


@pytest.mark.parametrize(
    ("ids", "mask", "words"),
    [
        ([], None, "no token ids"),
        ([20], None, "0 to 19"),
        ([-1], None, "0 to 19"),
        ([1, 2], [True], "mask"),
    ],
)
def test_bad_input_is_refused(ids: list[int], mask: list[bool] | None, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        gbst.embed(random_front_end(SMALL), ids, mask)
    assert caught.value.exit_code == 3


def test_a_negative_variance_is_refused() -> None:
    front = replace(SMALL, norm=True)
    weights = random_weights(front)
    weights[NORM + "running_var"][3] = -1
    with pytest.raises(InputError, match="running_var"):
        gbst.front_end(front, weights)
