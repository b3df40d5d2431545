"""Choices are held against llama-quantize's recipes on held-out text, and what does worse is not taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kconv.converters.families import family_for
from kconv.converters.mapping import build
from kconv.converters.results import Options
from kconv.converters.samples import write_sample
from kconv.converters.targets import Target, wished_targets
from kconv.core.model import Model
from kconv.core.reading import open_checkpoint
from kconv.core.tensor import Tensor
from kconv.core.windows import Window
from kconv.flows import probing
from kconv.flows.chooser import Chooser, Found
from kconv.flows.held_out import Formats, HeldOut, held_against_recipes, recipes_of
from kconv.flows.losses import Losses
from kconv.flows.plan_files import plan_of_target
from kconv.flows.probing import probe_windows
from kconv.flows.results import Run
from kconv.quant.choice_groups import Group, to_kinds
from kconv.quant.choice_losses import MENU, offered
from kconv.quant.chosen_policy import choosable
from kconv.quant.formats import FORMATS, Format
from kconv.quant.importance import Importance, importance_to_be
from kconv.quant.policy import choose_formats, parse_policy
from kconv.quant.wish import Wanted
from kconv.reference.probes import Divergence


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    checkpoint = open_checkpoint(write_sample("42dot", tmp_path_factory.mktemp("sample") / "sample"))
    return build(family_for(checkpoint.config), checkpoint)


@dataclass
class Measured:
    """Says of a mix what it loses without computing it, position by position."""

    lost: Callable[[Formats], float]
    mixes: list[Formats] = field(default_factory=list)

    def together(self, mixes: Sequence[Formats]) -> list[Divergence]:
        self.mixes += mixes
        noise = np.sin(np.arange(400.0))
        noise -= noise.mean()
        values = [self.lost(mix) * (1 + 0.1 * noise) for mix in mixes]
        return [Divergence(float(each.mean()), float(each.std() / 20), each) for each in values]


@dataclass
class Case:
    """A model whose tensors seem to lose ``seems`` of a format's bits, in nats."""

    model: Model
    seems: Callable[[Tensor, Format], float]

    def __post_init__(self) -> None:
        self.importance: Importance = importance_to_be(self.model.tensors)
        self.tensors = choosable(self.model, parse_policy("q8_0"))
        of = {
            tensor.name: {each: self.seems(tensor, each) for each in offered(tensor, MENU, self.importance)}
            for tensor in self.tensors
        }
        self.losses = Losses(of, {"tokens": 100, "texts_sha256": "0" * 64, "menu": [f.name for f in MENU]})
        self.plan_of = partial(plan_of_target, self.model, (), self.importance)
        self.chooser = Chooser(self.tensors, self.losses, self.model, self.plan_of)
        self.recipes = recipes_of(self.model, self.tensors, parse_policy("q8_0"), self.importance)

    def target(self, size: str = "", loss: float = 0.0) -> Target:
        wanted = Wanted((size,) if size else (), (loss,) if loss else ())
        (target,) = wished_targets("model", Path(), Options((), chosen=wanted), modelfile=False)
        return target

    def found(self, target: Target, lost: Callable[[Formats], float], told: list[str]) -> Found:
        held_out = HeldOut(Measured(lost))  # type: ignore[arg-type]
        evened = Chooser(self.tensors, self.losses.evened(0.5), self.model, self.plan_of)
        run = Run(announce=told.append)
        (found,) = held_against_recipes(held_out, self.chooser, evened, [target], self.recipes, run)
        return found

    def size_of(self, recipe: str, target: Target) -> int:
        return self.chooser.size(target, self.recipes[recipe], recipe)


def bits(format: Format) -> float:
    return 8 * format.block_bytes / format.block_size


def by_bits(tensor: Tensor, format: Format) -> float:
    """What a tensor loses where all weights are as delicate."""
    return tensor.elements * 2e-7 * 4.0 ** -bits(format)


def total(loss: Callable[[Tensor, Format], float], model: Model, mix: Formats) -> float:
    tensors = {tensor.name: tensor for tensor in model.tensors}
    return sum(loss(tensors[name], format) for name, format in mix.items())


def test_recipes_are_what_llama_quantize_gives(model: Model) -> None:
    tensors = choosable(model, parse_policy("q8_0"))
    importance = importance_to_be(model.tensors)
    found = recipes_of(model, tensors, parse_policy("q8_0", tensor_types=["attn_v=q6_K"]), importance)
    assert {"q2_K", "q3_K_M", "q4_K_M", "q5_K_M", "q6_K", "q8_0", "iq4_xs"} <= found.keys()
    assert not {"f16", "bf16", "f32"} & found.keys()
    asked = parse_policy("q4_k_m", tensor_types=["attn_v=q6_K"])
    formats = choose_formats(model, asked, importance).formats
    assert found["q4_K_M"] == {tensor.name: formats[tensor.name] for tensor in tensors}


def test_a_choice_that_loses_more_than_a_recipe_is_not_taken(model: Model) -> None:
    """What seemed to cost nothing costs most: sums of probes do not see it, the whole does."""

    def seems(tensor: Tensor, format: Format) -> float:
        return by_bits(tensor, format) * (0.001 if "ffn_down" in tensor.name else 1.0)

    case, told = Case(model, seems), []
    target = case.target("4.6bpw")
    lost = partial(total, lambda t, f: by_bits(t, f) * (100.0 if "ffn_down" in t.name else 1.0), model)
    found = case.found(target, lost, told)
    assert found.recipe in case.recipes
    assert found.formats == case.recipes[found.recipe]
    assert found.predicted == pytest.approx(lost(found.formats), rel=1e-6)
    assert case.size_of(found.recipe, target) <= case.chooser.most(target)  # type: ignore[operator]
    assert found.predicted <= lost(case.chooser.choose(target).formats)
    assert found.factor * case.chooser.loss_of(found.formats) == pytest.approx(found.predicted)  # type: ignore[operator]
    assert found.recipe in found.measured["recipes"]
    assert any("are taken" in each for each in told)


def test_a_choice_that_loses_clearly_less_is_taken(model: Model) -> None:
    def delicate(tensor: Tensor, format: Format) -> float:
        return by_bits(tensor, format) * (300.0 if "attn_k" in tensor.name else 1.0)

    case, told = Case(model, delicate), []
    target = case.target("4.6bpw")
    lost = partial(total, delicate, model)
    found = case.found(target, lost, told)
    assert found.recipe == ""
    assert found.predicted == pytest.approx(lost(found.formats))
    recipes = [mix for name, mix in case.recipes.items() if name in found.measured["recipes"]]
    assert recipes
    assert found.predicted < min(lost(mix) for mix in recipes)
    assert found.measured["recipes_kl"] == [pytest.approx(lost(mix), rel=1e-3) for mix in recipes]


def test_what_is_no_better_by_more_than_chance_gives_way_to_the_recipe(model: Model) -> None:
    case = Case(model, by_bits)
    found = case.found(case.target("4.6bpw"), lambda mix: 0.02, [])
    assert found.recipe


def test_a_recipe_that_meets_a_divergence_in_less_is_taken(model: Model) -> None:
    case = Case(model, by_bits)
    least = 0.9 * total(by_bits, model, case.recipes["q4_K_M"])
    recipes = list(case.recipes.values())
    target = case.target(loss=least)
    found = case.found(target, lambda mix: least * (0.5 if mix in recipes else 0.95), [])
    assert found.recipe
    assert found.predicted == pytest.approx(0.5 * least)
    chosen = case.chooser.choose(target).formats
    assert case.size_of(found.recipe, target) < case.chooser.size(target, chosen)


def test_choices_near_a_recipe_are_at_most_a_step_below_it(model: Model) -> None:
    def odd(tensor: Tensor, format: Format) -> float:
        return by_bits(tensor, format) * (1e4 if "ffn_up" in tensor.name else 1e-4)

    case = Case(model, odd)
    recipe = case.recipes["q4_K_M"]
    target = case.target("5.2bpw")
    far, near = case.chooser.choose(target).formats, case.chooser.choose(target, near=recipe).formats
    assert far != near
    menus: Mapping[str, list[Format]] = {
        tensor.name: list(offered(tensor, MENU, case.importance)) for tensor in case.tensors
    }
    for name, format in near.items():
        assert menus[name].index(format) >= menus[name].index(recipe[name]) - 1
    assert case.chooser.size(target, near) <= case.chooser.most(target)  # type: ignore[operator]
    for name, format in case.chooser.choose(target, near=recipe, above=1).formats.items():
        assert abs(menus[name].index(format) - menus[name].index(recipe[name])) <= 1


def test_bands_are_evened_out_within_their_kind() -> None:
    losses = {Group("a", 0, 1): 4.0, Group("a", 2, 3): 1.0, Group("b", 0, 3): 7.0, Group("c"): 0.0}
    assert to_kinds(losses) == {
        Group("a", 0, 1): pytest.approx(0.5),
        Group("a", 2, 3): pytest.approx(2.0),
        Group("b", 0, 3): pytest.approx(1.0),
        Group("c"): 1.0,
    }
    format = FORMATS["q4_K"]
    evened = Losses({"x": {format: 4.0}}, {}, {"x": 0.25}).evened(0.5)
    assert evened.of["x"][format] == pytest.approx(2.0)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 40, 200])
def test_windows_that_are_held_out_are_others(model: Model, count: int) -> None:
    every = [Window(0, tuple(range(at, at + 512))) for at in range(count)]
    probed, held_out = probe_windows(model, every)
    assert probed
    assert held_out
    assert count == 1 or not {window.ids for window in probed} & {window.ids for window in held_out}
    assert abs(len(probed) - len(held_out)) <= 1 or count == 1
    assert len(probed) <= 8192 // 512


@pytest.mark.parametrize(("weights", "probed", "held_out"), [(1e9, 4, 2), (1.3e8, 4, 8), (4e8, 8, 4)])
def test_probes_read_beginnings_from_more_places(
    model: Model, monkeypatch: pytest.MonkeyPatch, weights: float, probed: int, held_out: int
) -> None:
    """Half a text in one window of 512 would say little of a mixture; what is held out stays whole."""
    monkeypatch.setattr(probing, "parameters", lambda model: weights)
    every = [Window(0, tuple(range(at, at + 512))) for at in range(40)]
    first, second = probe_windows(model, every)
    assert [len(window.ids) for window in first] == [256] * probed
    assert [len(window.ids) for window in second] == [512] * held_out
    assert not {window.ids[0] for window in first} & {window.ids[0] for window in second}
    pairs = [replace(window, source=window.ids) for window in every]
    assert all(len(window.ids) == 512 for window in probe_windows(model, pairs)[0])
    late = [replace(window, scored_from=400) for window in every]
    assert all(window.ids and len(window.scored) > 0 for window in probe_windows(model, late)[0])
