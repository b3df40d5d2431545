"""What tensors lose follows what was measured of their groups: all of it, and not what misleads."""

from __future__ import annotations

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
from kconv.quant.choice_groups import Group, groups_of, outstanding
from kconv.quant.choice_losses import MENU, Errors, as_stored, relative_errors
from kconv.quant.chosen_policy import choosable
from kconv.quant.formats import FORMATS, Format
from kconv.quant.policy import parse_policy
from kconv.reference.probes import Probing
from kconv.verify.inputs import Expected, VerifyOptions

Q3, Q4, Q5, Q8 = (FORMATS[name] for name in ("q3_K", "q4_K", "q5_K", "q8_0"))


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


def expected_of(folder: Path) -> Expected:
    """With a tokenizer process of its own, which ends when nobody holds it any more."""
    checkpoint = open_checkpoint(write_sample("42dot", folder / "sample"))
    family = family_for(checkpoint.config)
    return Expected(checkpoint, family, build(family, checkpoint), read_tokenizer(checkpoint))


def test_a_matrix_unlike_its_neighbours_is_measured_in_each_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its losses are those of whole probes; the others' go by their errors from the one format probed."""
    windows = [Window(0, tuple(range(at, at + 24))) for at in (3, 40)]
    expected, apart = expected_of(tmp_path), "blk.1.ffn_down.weight"
    monkeypatch.setattr(probing_module, "outstanding", lambda powers: {apart})
    tensors = choosable(expected.model, parse_policy("q8_0"))
    prober = Prober(expected, tensors, None, windows, windows, VerifyOptions(threads=1))
    found = prober.losses(MENU, "0" * 64, 1).of
    plain = {tensor.name: tensor for tensor in expected.model.tensors}
    changes = [{apart: as_stored(plain[apart], format, None)} for format in MENU]
    measured = Probing(expected.checkpoint, expected.family, plain, threads=1).divergences(changes, windows)
    assert list(found[apart].values()) == pytest.approx([each.mean for each in measured], rel=1e-6)
    name = "blk.0.ffn_down.weight"
    errors = relative_errors(plain[name], MENU, None).of
    assert found[name][Q5] / found[name][Q3] == pytest.approx(errors[Q5] / errors[Q3], rel=1e-6)
    monkeypatch.setattr(probing_module, "parameters", lambda model: 1.3e9)
    large = prober.losses(MENU, "0" * 64, 1).of[apart]
    assert [large[Q4], large[Q8]] == [found[apart][Q4], found[apart][Q8]]
    assert large[Q5] == large[Q4]  # not measured in a large model, so taken as no better than the coarser one


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
