"""What tensors lose follows what was measured of their groups: all of it, and not what misleads."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.samples import write_sample
from kconv.converters.tokenizer import read_tokenizer
from kconv.core.reading import open_checkpoint
from kconv.core.windows import Window
from kconv.flows import probing as probing_module
from kconv.flows.losses import Groups
from kconv.flows.probing import Prober
from kconv.quant.choice_curves import Curve, curve
from kconv.quant.choice_groups import Group, groups_of, outstanding
from kconv.quant.choice_losses import MENU, Errors, as_stored, relative_errors
from kconv.quant.chosen_policy import choosable
from kconv.quant.formats import FORMATS, Format
from kconv.quant.policy import parse_policy
from kconv.reference.probes import Probing
from kconv.verify.inputs import Expected, VerifyOptions

Q3, Q4, Q5, Q8 = (FORMATS[name] for name in ("q3_K", "q4_K", "q5_K", "q8_0"))


def test_a_curve_goes_through_what_was_measured() -> None:
    """A power of the error between two points, proportional to it beyond them."""
    along = curve([(0.04, 0.08), (0.01, 0.01)])
    assert along.at(0.01) == pytest.approx(0.01)
    assert along.at(0.04) == pytest.approx(0.08)
    assert along.at(0.02) == pytest.approx(0.01 * 2**1.5)
    assert along.at(0.08) == pytest.approx(0.16)
    assert along.at(0.001) == pytest.approx(0.001)
    assert along.at(math.inf) == math.inf
    assert along.at(0.0) == Curve(()).at(1.0) == 0.0
    losses = [along.at(error) for error in np.geomspace(1e-4, 1, 60)]
    assert losses == sorted(losses)


def test_one_measurement_is_carried_in_proportion() -> None:
    along = curve([(0.02, 0.5)])
    assert [along.at(error) for error in (0.002, 0.02, 0.2)] == pytest.approx([0.05, 0.5, 5.0])


def test_measurements_at_about_the_same_error_are_one() -> None:
    along = curve([(0.0100, 0.010), (0.0101, 0.0102), (0.0, 0.3), (0.04, 0.0)])
    assert len(along.points) == 1
    assert along.at(0.04) == pytest.approx(0.04, rel=0.02)


def test_what_chance_makes_of_little_losses_is_not_believed() -> None:
    """No loss at a fine format, as it may come out of few tokens, does not make a coarser one free."""
    along = curve([(0.001, 1e-12), (0.1, 0.1)])
    assert along.at(0.01) >= 0.1 * 0.1**2 * 0.999


def test_matrices_with_outputs_unlike_their_neighbours_are_found() -> None:
    """Outputs of blk.N.ffn_down of SmolLM2-135M: what grows with the layers is none, 11, 28 and 29 are."""
    powers = (2, 0.97, 3.2, 1.2, 1.3, 1.4, 1.5, 1.7, 2.1, 3.5, 2.6, 1100, 1.8, 1.7, 1.7, 2.2, 1.8, 1.9, 4,
              4.5, 9.4, 7.5, 14, 20, 21, 18, 22, 40, 910, 480)  # fmt: skip
    named = {f"blk.{layer}.ffn_down.weight": float(power) for layer, power in enumerate(powers)}
    others = {f"blk.{layer}.ffn_up.weight": 1e4 for layer in range(30)} | {"token_embd.weight": 1e9}
    apart = outstanding(named | others)
    assert apart == {f"blk.{layer}.ffn_down.weight" for layer in (11, 28, 29)}
    groups = groups_of(named, 8, apart)
    assert groups[Group("ffn_down", 11, 11, alone=True)] == ("blk.11.ffn_down.weight",)
    assert sum(map(len, groups.values())) == 30
    assert not apart & {name for group, names in groups.items() if not group.alone for name in names}


def groups(alone: bool) -> tuple[Groups, Group]:
    group = Group("ffn_down", 0, 0, alone)
    of: dict[Format, float] = {Q3: 59e-4, Q4: 0.1e-4, Q5: 0.03e-4, Q8: 0.2e-4}  # blk.11.ffn_down's
    return Groups({group: ("x",)}, {"x": (Q3, Q4, Q5, Q8)}, {"x": Errors(of, 1100.0)}), group


def test_a_tensor_whose_errors_mislead_loses_what_was_measured_or_more() -> None:
    found, group = groups(alone=True)
    found.learn(group, {"x": Q4}, 0.03)
    found.learn(group, {"x": Q8}, 0.0001)
    lost = found.losses({}).of["x"]
    assert lost == {Q3: pytest.approx(0.3), Q4: 0.03, Q5: 0.03, Q8: 0.0001}
    found.learn(group, {"x": Q3}, 0.05)
    assert found.losses({}).of["x"][Q3] == 0.05


def test_groups_are_measured_again_where_that_says_more() -> None:
    found, group = groups(alone=False)
    found.learn(group, {"x": Q3}, 0.05)
    assert [mix for _, mix in found.unknown([{"x": Q3}, {"x": Q4}, {"x": Q4}])] == [{"x": Q4}]
    assert not found.unknown([{"x": Q8}])  # nothing above it
    found.learn(group, {"x": Q4}, 0.03)
    assert not found.unknown([{"x": Q4}])
    assert found.losses({}).of["x"][Q4] == 0.03


def expected_of(folder: Path) -> Expected:
    """With a tokenizer process of its own, which ends when nobody holds it any more."""
    checkpoint = open_checkpoint(write_sample("42dot", folder / "sample"))
    family = family_for(checkpoint.config)
    return Expected(checkpoint, family, build(family, checkpoint), read_tokenizer(checkpoint))


def test_what_is_measured_again_is_what_each_group_loses_in_the_formats_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = expected_of(tmp_path)
    windows = [Window(0, tuple(range(at, at + 24))) for at in (3, 40)]
    tensors = choosable(expected.model, parse_policy("q8_0"))
    told: list[str] = []
    prober = Prober(expected, tensors, None, windows, windows, VerifyOptions(threads=1, announce=told.append))
    first = prober.losses(MENU, "0" * 64, 1)
    mix = {tensor.name: Q5 for tensor in tensors}
    again = prober.again([mix])
    assert again is not None
    assert again.measured["again"] == len(tensors)  # few layers, so each matrix is a group
    assert any("measured again" in each for each in told)
    plain = {tensor.name: tensor for tensor in expected.model.tensors}
    names = ("token_embd.weight", "blk.0.ffn_down.weight", "blk.1.attn_v.weight")
    changes = [{name: as_stored(plain[name], Q5, None)} for name in names]
    measured = Probing(expected.checkpoint, expected.family, plain, threads=1).divergences(changes, windows)
    for name, divergence in zip(names, measured, strict=True):
        assert again.of[name][Q5] == pytest.approx(divergence.mean, rel=1e-6)
        assert again.of[name][Q3] == pytest.approx(first.of[name][Q3], rel=1e-6)
        assert again.of[name][Q5] != pytest.approx(first.of[name][Q5], rel=1e-4)
    assert prober.again([mix]) is None, "all of that is known"
    monkeypatch.setattr(probing_module, "AGAIN", 1.0)
    assert prober.again([dict.fromkeys(mix, Q4)]) is None, "it would take too long"


def test_power_is_the_mean_square_of_what_a_matrix_gives(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_sample("42dot", tmp_path / "sample"))
    expected = build(family_for(checkpoint.config), checkpoint)
    tensor = next(t for t in expected.tensors if t.name == "blk.0.attn_q.weight")
    rows = tensor.read(0, tensor.rows)
    rows = (
        rows.astype(np.float64) if rows.dtype.kind == "f" else (rows.astype(np.uint32) << 16).view(np.float32)
    )
    power = float((rows.astype(np.float64) ** 2).sum() / tensor.rows)
    assert relative_errors(tensor, (Q4,), None).power == pytest.approx(power, rel=1e-5)
