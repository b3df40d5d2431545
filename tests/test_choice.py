"""Choosing sizes: against all combinations on small problems, against the Lagrangian bound on large ones."""

from __future__ import annotations

import itertools
import random

import pytest

from kconv.quant.choice import Candidate, Chosen, Item, ladder, least_bytes, least_loss


def problem(seed: int, items: int, candidates: int) -> list[Item]:
    """Items of sizes and losses as tensors have them: about four times less loss a bit more, with scatter."""
    chance = random.Random(seed)
    made = []
    for number in range(items):
        weights, weight = chance.randrange(1, 40) * 32, chance.lognormvariate(0, 1.5)
        bits = sorted(chance.sample(range(9, 36), candidates))
        made.append(
            Item(
                f"t{number}",
                tuple(
                    Candidate(
                        f"f{bit}", weights * bit // 8, weight * 4.0 ** (-bit / 4) * chance.uniform(0.7, 1.4)
                    )
                    for bit in bits
                ),
            )
        )
    return made


def every(items: list[Item]) -> list[Chosen]:
    return [
        Chosen(each, sum(one.bytes for one in each), sum(one.loss for one in each))
        for each in itertools.product(*(item.candidates for item in items))
    ]


@pytest.mark.parametrize("seed", range(12))
def test_small_problems_are_solved_about_as_well_as_by_trying_all(seed: int) -> None:
    items = problem(seed, 5, 4)
    all_of_them = every(items)
    sizes = sorted(each.bytes for each in all_of_them)
    ratios = []
    for share in (0, 0.05, 0.2, 0.4, 0.6, 0.8, 1):
        budget = sizes[int(share * (len(sizes) - 1))]
        found, best = (
            least_loss(items, budget),
            min(each.loss for each in all_of_them if each.bytes <= budget),
        )
        assert found is not None
        assert found.bytes <= budget
        assert found.loss >= best * (1 - 1e-12)
        ratios.append(found.loss / best)
        smallest = min(each.bytes for each in all_of_them if each.loss <= found.loss)
        back = least_bytes(items, found.loss)
        assert back is not None
        assert back.loss <= found.loss
        assert back.bytes <= 1.1 * smallest
    assert max(ratios) < 1.25
    assert sum(ratios) / len(ratios) < 1.06


def bound(items: list[Item], budget: int) -> float:
    """The Lagrangian lower bound of the loss: the best over prices of a byte."""
    prices = [10.0 ** (power / 20) for power in range(-240, 40)]
    return max(
        sum(min(one.loss + price * one.bytes for one in item.candidates) for item in items) - price * budget
        for price in prices
    )


@pytest.mark.parametrize("seed", range(3))
def test_large_problems_come_near_the_bound_and_never_above_the_size(seed: int) -> None:
    items = problem(seed, 200, 8)
    least, most = (sum(pick(each.bytes for each in item.candidates) for item in items) for pick in (min, max))
    for share in (0.1, 0.3, 0.5, 0.8):
        budget = int(least + share * (most - least))
        found = least_loss(items, budget)
        assert found is not None
        assert found.bytes <= budget
        assert found.loss <= 1.02 * bound(items, budget)


def test_what_cannot_be_is_none_and_the_edges_are_the_smallest_and_the_best() -> None:
    items = problem(1, 6, 3)
    rungs = [ladder(item.candidates) for item in items]
    smallest, best = [each[0] for each in rungs], [each[-1] for each in rungs]
    least, lost = sum(each.bytes for each in smallest), sum(each.loss for each in best)
    assert least_loss(items, least - 1) is None
    found = least_loss(items, least)
    assert found is not None
    assert list(found.candidates) == smallest
    found = least_loss(items, 10**9)
    assert found is not None
    assert list(found.candidates) == best
    assert least_bytes(items, lost * 0.999) is None
    found = least_bytes(items, lost * (1 + 1e-9))
    assert found is not None
    assert list(found.candidates) == best
    found = least_bytes(items, 1e9)
    assert found is not None
    assert list(found.candidates) == smallest


def test_more_room_never_loses_more() -> None:
    items = problem(5, 40, 6)
    least = sum(min(each.bytes for each in item.candidates) for item in items)
    found = [least_loss(items, least + room) for room in range(0, 60000, 1500)]
    losses = [each.loss for each in found if each is not None]
    assert len(losses) == len(found)
    assert all(later <= earlier * 1.005 for earlier, later in itertools.pairwise(losses))
