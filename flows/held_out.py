"""Choices held against llama-quantize's recipes of the same size, on calibration text none was chosen on.

Sums of losses that were measured one by one, on little text, are an estimate: what is chosen by them may lose
more than a recipe that has served many models. So each choice and the recipes nearest below it in size are
measured as a whole on held-out windows, and the better one is taken. What it lost there is the prediction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..converters.targets import Target
from ..core.errors import InputError
from ..core.model import Model
from ..core.tensor import Tensor
from ..quant.formats import Format
from ..quant.importance import Importance
from ..quant.named_recipes import POLICIES, Policy
from ..quant.policy import choose_formats
from ..reference.probes import Divergence
from .chooser import Chooser, Found
from .probing import Prober
from .results import Run

Formats = Mapping[str, Format]

RECIPES = 3
"""Of those no larger than a target, so many are measured: the largest is not always the best."""

MIXES = RECIPES + 3
"""That are measured for each target, about."""

OF_A_CHOICE = ("recipe", "recipes", "recipes_kl")
"""What a policy file's measurement says of one choice, not of all that are made from it."""

_AGAIN = 4  # times a target divergence is tried for
_NEAR = 0.85  # of a target divergence, which is near enough
_ERRORS = 2.0  # standard errors that a choice has to lose less than a recipe by


class HeldOut:
    """Measures mixes of formats on the windows of ``prober`` that nothing is chosen on, each once."""

    def __init__(self, prober: Prober) -> None:
        self._prober = prober
        self._known: dict[tuple[str, ...], Divergence] = {}

    def measure(self, mixes: Sequence[Formats]) -> list[Divergence]:
        """What the model loses in each. Raises what reading the checkpoint raises."""
        new = {_key(mix): mix for mix in mixes if _key(mix) not in self._known}
        if new:
            found = self._prober.together(list(new.values()))
            self._known |= dict(zip(new, found, strict=True))
        return [self._known[_key(mix)] for mix in mixes]


def _key(mix: Formats) -> tuple[str, ...]:
    return tuple(format.name for _, format in sorted(mix.items()))


def recipes_of(
    model: Model, tensors: Sequence[Tensor], asked: Policy, importance: Importance | None
) -> dict[str, Formats]:
    """What llama-quantize's recipes give these tensors; ``asked`` has what was asked for by name."""
    found: dict[str, Formats] = {}
    for name, policy in POLICIES.items():
        if not policy.default.quantized:
            continue
        whole = replace(
            policy,
            keep_wo=asked.keep_wo,
            overrides=asked.overrides,
            output_type=asked.output_type,
            embedding_type=asked.embedding_type,
        )
        try:
            formats = choose_formats(model, whole, importance).formats
        except InputError:  # it needs importance data, or its formats do not fit
            continue
        found[name] = {tensor.name: formats[tensor.name] for tensor in tensors}
    return found


def held_against_recipes(
    held_out: HeldOut,
    chooser: Chooser,
    evened: Chooser,
    wished: Sequence[Target],
    recipes: Mapping[str, Formats],
    run: Run,
) -> list[Found]:
    """For each target the choice or the recipe that does best on held-out text.

    Within a size there are several choices: by what was measured, by the same ``evened`` out, and by what was
    measured no further than a step from a recipe. Those for a divergence are chosen anew until they meet it.
    """
    recipes = {name: mix for name, mix in recipes.items() if chooser.loss_of(mix) is not None}
    found = [chooser.choose(target) for target in wished]
    near = [_nearest(chooser, target, each, recipes) for target, each in zip(wished, found, strict=True)]
    choices = [
        [first, *_others(chooser, evened, target, those)]
        for target, first, those in zip(wished, found, near, strict=True)
    ]
    mixes = [
        mix
        for each, those in zip(choices, near, strict=True)
        for mix in (*(choice.formats for choice in each), *those.values())
    ]
    held_out.measure(mixes)  # all in one pass over the weights
    made = []
    for target, each, those in zip(wished, choices, near, strict=True):
        if chooser.most(target) is None:
            choice = _meeting(held_out, chooser, target, each[0], run)
        else:
            choice = min((_measured(held_out, one) for one in each), key=lambda one: one.predicted)
        made.append(_better(held_out, chooser, target, choice, those, run))
    return made


def _others(chooser: Chooser, evened: Chooser, target: Target, recipes: Mapping[str, Formats]) -> list[Found]:
    """Choices of a target's size that trust single probes less."""
    if chooser.most(target) is None:
        return []
    mixes = [evened.choose(target).formats]
    if recipes:
        mixes.append(chooser.choose(target, near=list(recipes.values())[-1]).formats)
    return [Found(mix, chooser.loss_of(mix) or 0.0) for mix in mixes]


def _nearest(
    chooser: Chooser, target: Target, choice: Found, recipes: Mapping[str, Formats]
) -> dict[str, Formats]:
    """The largest recipes that are no larger than a target, or than what was chosen for a divergence."""
    most = chooser.most(target)
    if most is None:
        most = chooser.size(target, choice.formats) - 1
    sizes = {name: chooser.size(target, mix, name) for name, mix in recipes.items()}
    small = sorted((name for name in recipes if sizes[name] <= most), key=lambda name: sizes[name])
    unlike = {_key(recipes[name]): name for name in small}
    largest = sorted(unlike.values(), key=lambda name: sizes[name])[-RECIPES:]
    return {name: recipes[name] for name in largest}


def _meeting(held_out: HeldOut, chooser: Chooser, target: Target, choice: Found, run: Run) -> Found:
    """The smallest choice that loses no more than a target divergence as a whole."""
    wish = target.wish
    assert wish is not None
    tried = [_measured(held_out, choice)]
    while len(tried) < _AGAIN and not _NEAR * wish.value <= tried[-1].predicted <= wish.value:
        again = chooser.choose(target, tried[-1].factor)
        if any(again.formats == before.formats for before in tried):
            break
        tried.append(_measured(held_out, again))
    within = [each for each in tried if each.predicted <= wish.value]
    if within:
        return max(within, key=lambda each: each.predicted)
    best = min(tried, key=lambda each: each.predicted)
    run.announce(f"warning: {wish.label} was not met: {best.predicted:.3g} nats")
    return best


def _measured(held_out: HeldOut, choice: Found) -> Found:
    """A choice whose divergence is known."""
    (divergence,) = held_out.measure([choice.formats])
    return choice.losing(divergence.mean)


def _better(
    held_out: HeldOut,
    chooser: Chooser,
    target: Target,
    choice: Found,
    recipes: Mapping[str, Formats],
    run: Run,
) -> Found:
    """The choice, or the recipe that does better: what loses less, or is smaller within a divergence."""
    wish = target.wish
    assert wish is not None
    (own,) = held_out.measure([choice.formats])
    lost = dict(zip(recipes, held_out.measure(list(recipes.values())), strict=True))
    measured = _said(lost)
    choice = replace(_measured(held_out, choice), measured=measured)
    if wish.kind == "divergence":
        met = [name for name, each in lost.items() if each.mean <= wish.value]
        better = met[:1]  # they come from the smallest to the largest, all smaller than the choice
    else:
        better = [name for name in lost if not _clearly_less(own, lost[name])]
        better = sorted(better, key=lambda name: lost[name].mean)[:1]
    told = ", ".join(f"{name} {each.mean:.3g}" for name, each in lost.items()) or "no recipe of that size"
    run.announce(
        f"types: {wish.label} loses {own.mean:.3g} nats on held-out text as chosen; {told}"
        + (f": the formats of {better[0]} are taken" if better else "")
    )
    if not better:
        return choice
    (name,) = better
    total = chooser.loss_of(recipes[name])
    factor = lost[name].mean / total if total else choice.factor
    return Found(recipes[name], lost[name].mean, factor, name, measured)


def _clearly_less(one: Divergence, other: Divergence) -> bool:
    """Whether one loses less than the other by more than chance, position by position."""
    gains = other.positions - one.positions
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return bool(gains.mean() > _ERRORS * error)


def _said(lost: Mapping[str, Divergence]) -> dict[str, Any]:
    """What a policy file says of the comparison."""
    return {
        "recipes": list(lost),
        "recipes_kl": [float(f"{each.mean:.4g}") for each in lost.values()],
    }
