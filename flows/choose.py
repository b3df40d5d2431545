"""From a size or a loss to the format of every tensor: what is measured, chosen, checked and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path

from ..converters.gguf_plan import FilePlan
from ..converters.kept_choices import kept_choices
from ..converters.mapping import parameters
from ..converters.results import Options, Output
from ..converters.targets import Target
from ..core.cores import available_cores
from ..core.errors import InputError
from ..core.gguf_file import aligned
from ..core.model import Model
from ..core.sizes import size_text
from ..core.tensor import Tensor
from ..quant.choice import Candidate, Chosen, Item, least_bytes, least_loss
from ..quant.choice_losses import MENU, offered, parse_menu
from ..quant.chosen_policy import choosable, chosen_policy, refuse_other_architecture
from ..quant.formats import FORMATS, Format
from ..quant.importance import Importance
from ..quant.policy_file import Choice, read_choice
from ..quant.wish import Wish
from ..verify.inputs import Expected, VerifyOptions, proof_windows, text_windows
from .full_statistics import digest_of
from .importance import named_texts
from .probing import Losses, Prober, probe_windows, refuse_proof_text, refuse_silent
from .results import Run
from .resume import journal_of

PlanOf = Callable[[Target], FilePlan]
"""Plans the file of a target as it will be written."""

_AGAIN = 4  # times a target divergence is tried for
_NEAR = 0.85  # of a target divergence, which is near enough
_ROUNDS = 6  # in which a size is met to the byte


def with_choices(
    targets: Sequence[Target],
    expected: Expected | None,
    model: Model,
    importance: Importance | None,
    options: Options,
    plan_of: PlanOf,
    run: Run,
) -> list[Target]:
    """The targets, those with a wish with the policy that fulfils it.

    What tensors lose comes from the policy file of ``options`` or is measured on its calibration text.
    Raises InputError for what cannot be fulfilled, for texts the files are proven on, and for policy files of
    other models, and what reading the checkpoint raises.
    """
    wished = [target for target in targets if target.wish is not None]
    if not wished:
        return list(targets)
    tensors = choosable(model, wished[0].policy)
    known = None if options.chosen.policy is None else read_choice(options.chosen.policy)
    if known is not None:
        refuse_other_architecture(known, model, str(options.chosen.policy))
    if not options.chosen.targets:
        assert known is not None
        return [_with(target, known, tensors) if target.wish else target for target in targets]
    menu = _menu(options)
    before = _chosen_before(wished, menu, options, run)
    if before is not None:
        made = {each.path: _with(each, before[each.policy.name], tensors) for each in wished}
        return [made.get(target.path, target) for target in targets]
    prober = None
    if known is None:
        assert expected is not None
        prober = _prober(replace(expected, model=model), tensors, importance, options, run)
        losses = prober.losses(menu, digest_of(_texts(options)))
    else:
        losses = _saved(known, tensors, menu, importance, str(options.chosen.policy))
    chooser = Chooser(tensors, losses, model, plan_of)
    found = [chooser.choose(target) for target in wished]
    if prober is not None:
        found = _checked(prober, chooser, wished, found, run)
    made = {
        target.path: _with(target, _choice(target.policy.name, model, losses, each), tensors)
        for target, each in zip(wished, found, strict=True)
    }
    return [made.get(target.path, target) for target in targets]


def predicted_of(output: Output) -> float | None:
    """What a file made was predicted to lose, in nats; None where nobody has chosen its formats."""
    return None if output.choice is None else output.choice.predicted


def refuse_impossible(
    targets: Sequence[Target], model: Model, importance: Importance, options: Options, plan_of: PlanOf
) -> None:
    """Raise InputError for sizes below what the smallest formats of the menu make, before any long work."""
    wished = [target for target in targets if target.wish is not None and target.wish.kind != "policy"]
    if not wished:
        return
    menu = _menu(options)
    tensors = choosable(model, wished[0].policy)
    sizes = {tensor.name: dict.fromkeys(offered(tensor, menu, importance), 0.0) for tensor in tensors}
    chooser = Chooser(tensors, Losses(sizes, {}), model, plan_of)
    for target in wished:
        if target.wish is not None and target.wish.kind != "divergence":
            chooser.choose(target)


def _prober(
    expected: Expected, tensors: Sequence[Tensor], importance: Importance | None, options: Options, run: Run
) -> Prober:
    refuse_silent(expected.model, encoder=expected.family.encoder_only)
    windows = text_windows(expected, list(_texts(options).values()), tokens=None, window=None)
    refuse_proof_text(windows, proof_windows(expected, options.verify, run.proof_texts, run.proof_tokens))
    how = VerifyOptions(
        threads=run.threads or available_cores(), progress=run.progress, announce=run.announce
    )
    return Prober(expected, tensors, importance, probe_windows(expected.model, windows), how)


def _chosen_before(
    wished: Sequence[Target], menu: Sequence[Format], options: Options, run: Run
) -> Mapping[str, Choice] | None:
    """What an ended run for the same files has chosen from the same text, if this one goes on with it."""
    journal = journal_of([path for target in wished for path in target.paths]) if run.resume else None
    kept = {} if journal is None else kept_choices(journal)
    asked = {"texts_sha256": digest_of(_texts(options)), "menu": [format.name for format in menu]}
    for target in wished:
        choice = kept.get(target.policy.name)
        if choice is None or asked != {key: choice.measured.get(key) for key in asked}:
            return None
    run.announce("resumed: the formats have been chosen already")
    return kept


def _menu(options: Options) -> tuple[Format, ...]:
    return parse_menu(options.chosen.menu) or MENU


def _texts(options: Options) -> dict[str, str]:
    return named_texts([Path(path) for path in options.calibrate])


def _saved(
    known: Choice,
    tensors: Sequence[Tensor],
    menu: Sequence[Format],
    importance: Importance | None,
    where: str,
) -> Losses:
    """The losses of a policy file, as far as the menu and this model's tensors go."""
    of: dict[str, dict[Format, float]] = {}
    for tensor in tensors:
        saved, given = known.losses.get(tensor.name, {}), offered(tensor, menu, importance)
        of[tensor.name] = {each: saved[each.name] for each in given if saved.get(each.name, inf) < inf}
        if not of[tensor.name]:
            raise InputError(
                f"{where} has no measured losses of {tensor.name} in "
                f"{', '.join(each.name for each in given)}",
                hint="measure anew: leave out --policy and pass --calibrate TEXT",
            )
    return Losses(of, known.measured)


def _with(target: Target, choice: Choice, tensors: Sequence[Tensor]) -> Target:
    """The target with the policy of a choice; what a tensor cannot have falls back as in recipes."""
    policy = chosen_policy(target.policy.name, choice.formats, tensors, target.policy)
    return replace(target, policy=policy, choice=choice)


def _choice(label: str, model: Model, losses: Losses, found: Found) -> Choice:
    """What was found, with the losses as they add up to what it loses as a whole."""
    formats, predicted, factor = found
    of = {name: {each.name: loss * factor for each, loss in of.items()} for name, of in losses.of.items()}
    return Choice(label, model.arch, formats, float(f"{predicted:.4g}"), of, losses.measured)


Found = tuple[Mapping[str, Format], float, float]
"""Formats by tensors, the predicted mean divergence, and what the sum of losses is multiplied by for it."""


class Chooser:
    """Chooses among what tensors lose and weigh."""

    def __init__(self, tensors: Sequence[Tensor], losses: Losses, model: Model, plan_of: PlanOf) -> None:
        self._tensors, self._plan_of, self._weights = tensors, plan_of, parameters(model)
        self._items = [
            Item(
                tensor.name,
                tuple(
                    Candidate(format.name, aligned(format.tensor_bytes(tensor.shape)), loss)
                    for format, loss in losses.of[tensor.name].items()
                    if loss != inf
                ),
            )
            for tensor in tensors
        ]

    def choose(self, target: Target, factor: float = 1.0) -> Found:
        """What fulfils the wish of a target, where the model loses ``factor`` times the sum of all losses.

        Raises InputError where nothing on the menu does.
        """
        wish = target.wish
        assert wish is not None
        if wish.kind == "divergence":
            found = least_bytes(self._items, wish.value / factor)
            if found is None:
                least = factor * sum(min(each.loss for each in item.candidates) for item in self._items)
                raise InputError(
                    f"no choice loses as little as {wish.value:g} nats: the largest formats of the menu lose "
                    f"{least:.2g}",
                    hint="allow finer ones, for example --menu q4_K,q5_K,q6_K,q8_0,f16, or a larger target",
                )
        else:
            found = self._within(target, wish)
        return self._formats(found), factor * found.loss, factor

    def _within(self, target: Target, wish: Wish) -> Chosen:
        """The candidates that lose least in a file of that size, which is planned to the byte."""
        smallest = least_loss(self._items, sum(min(c.bytes for c in item.candidates) for item in self._items))
        assert smallest is not None
        most = wish.value if wish.kind == "bytes" else wish.value * self._weights / 8
        least = self._size(target, smallest)
        room = int(most) - (least - smallest.bytes)
        for _ in range(_ROUNDS):
            found = least_loss(self._items, room)
            if found is None:
                break
            over = self._size(target, found) - int(most)
            if over <= 0:
                return found
            room -= over  # parts of a file that is split, whose headers differ
        bits = f" ({8 * least / self._weights:.2f} bits per weight)" if wish.kind == "bits" else ""
        raise InputError(
            f"{wish.label} is below the smallest file of these formats: {least:,} bytes, "
            f"{size_text(least)}{bits}",
            hint="choose a larger size, or allow smaller formats with --menu",
        )

    def _size(self, target: Target, chosen: Chosen) -> int:
        """Bytes of the file, with all its parts; of the weights alone where bits per weight are meant."""
        policy = chosen_policy(target.policy.name, self._formats(chosen), self._tensors, target.policy)
        plan = self._plan_of(replace(target, policy=policy))
        if target.wish is not None and target.wish.kind == "bits":
            return plan.data_bytes
        return sum(len(head) + data for head, data in plan.layout())

    def _formats(self, chosen: Chosen) -> dict[str, Format]:
        pairs = zip(self._items, chosen.candidates, strict=True)
        return {item.name: FORMATS[candidate.format] for item, candidate in pairs}


def _checked(
    prober: Prober, chooser: Chooser, wished: Sequence[Target], found: Sequence[Found], run: Run
) -> list[Found]:
    """The choices with what they lose as a whole, measured; those for a divergence until they meet it."""
    checked = []
    measured = prober.together([each[0] for each in found])
    for target, choice, divergence in zip(wished, found, measured, strict=True):
        tried = [_measured(choice, divergence.mean)]
        wish = target.wish
        while wish is not None and wish.kind == "divergence" and len(tried) < _AGAIN:
            if _NEAR * wish.value <= tried[-1][1] <= wish.value:
                break
            again = chooser.choose(target, tried[-1][2])
            if any(again[0] == before[0] for before in tried):
                break
            tried.append(_measured(again, prober.together([again[0]])[0].mean))
        best = _best(tried, wish)
        if wish is not None and wish.kind == "divergence" and best[1] > wish.value:
            run.announce(f"warning: {wish.label} was not met: {best[1]:.3g} nats")
        checked.append(best)
    return checked


def _measured(choice: Found, mean: float) -> Found:
    """A choice whose divergence is known."""
    formats, predicted, factor = choice
    return formats, mean, factor * mean / predicted if predicted else factor


def _best(tried: Sequence[Found], wish: Wish | None) -> Found:
    """The one that loses most within the wish, hence the smallest; else the one that loses least."""
    most = wish.value if wish is not None and wish.kind == "divergence" else inf
    within = [each for each in tried if each[1] <= most]
    return max(within, key=lambda each: each[1]) if within else min(tried, key=lambda each: each[1])
