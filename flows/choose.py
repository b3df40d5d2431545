"""From a size or a loss to the format of every tensor: what is measured, chosen, checked and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from shutil import disk_usage

from ..converters.kept_choices import keep_choices, kept_choices
from ..converters.results import Options, Output
from ..converters.targets import Target
from ..core.cores import available_cores
from ..core.errors import InputError
from ..core.model import Model
from ..core.tensor import Tensor
from ..quant.choice_losses import MENU, offered, parse_menu
from ..quant.chosen_policy import choosable, chosen_policy, refuse_other_architecture
from ..quant.formats import Format
from ..quant.importance import SPARED, Importance
from ..quant.kept_codes import KeptCodes
from ..quant.policy_file import Choice, read_choice
from ..verify.inputs import Expected, VerifyOptions, text_windows
from .arrivals import until_the_end
from .chooser import Chooser, Found, PlanOf
from .full_statistics import digest_of, with_codes
from .held_out import MIXES, OF_A_CHOICE, HeldOut, held_against_recipes, recipes_of
from .importance import named_texts
from .kept_losses import probes_kept
from .kept_work import CODES
from .losses import Losses
from .probing import Prober, probe_windows, refuse_silent
from .reach import refuse_out_of_reach
from .results import Run
from .resume import journal_of

_EVENED = 0.5  # of the differences between layers (in logarithms) that a more careful choice leaves out


def with_choices(
    targets: Sequence[Target],
    expected: Expected | None,
    model: Model,
    importance: Importance | None,
    options: Options,
    plan_of: PlanOf,
    run: Run,
) -> tuple[list[Target], Importance | None]:
    """The targets, those with a wish with the policy that fulfils it; and the importance data, with how codes
    are chosen in these formats if that has been found out.

    What tensors lose comes from the policy file of ``options`` or is measured on its calibration text.
    Raises InputError for what cannot be fulfilled, for texts the files are proven on, and for policy files of
    other models, and what reading the checkpoint raises.
    """
    wished = [target for target in targets if target.wish is not None]
    if not wished:
        return list(targets), importance
    tensors = choosable(model, wished[0].policy)
    known = None if options.chosen.policy is None else read_choice(options.chosen.policy)
    if known is not None:
        refuse_other_architecture(known, model, str(options.chosen.policy))
    if not options.chosen.targets:
        assert known is not None
        chosen = [_with(target, known, tensors) if target.wish else target for target in targets]
        return chosen, importance
    menu = _menu(options)
    before = _chosen_before(wished, menu, options, run)
    if before is not None:
        made = {each.path: _with(each, before[each.policy.name], tensors) for each in wished}
        return [made.get(target.path, target) for target in targets], importance
    prober = None
    if known is None:
        assert expected is not None
        expected = replace(expected, model=model)
        texts = _texts(options)
        refuse_out_of_reach(wished, tensors, expected, menu, texts, importance, run, calibrated=True)
        prober = _prober(expected, tensors, importance, options, run)
        losses = prober.losses(menu, digest_of(texts), MIXES * len(wished))
    else:
        losses = _saved(known, tensors, menu, importance, str(options.chosen.policy))
    chooser = Chooser(tensors, losses, model, plan_of)
    if prober is None:
        found = [chooser.choose(target) for target in wished]
    else:
        evened = Chooser(tensors, losses.evened(_EVENED), model, plan_of)
        recipes = recipes_of(model, tensors, wished[0].policy, importance)
        found = held_against_recipes(HeldOut(prober), chooser, evened, wished, recipes, run)
        if options.optimize and importance is not None:
            sizes = [chooser.size(target, each.formats) for target, each in zip(wished, found, strict=True)]
            importance = _keeping_codes(importance, sum(sizes), run)
            wanted = [(tensor, [each.formats[tensor.name] for each in found]) for tensor in tensors]
            importance = with_codes(importance, model, [w for w in wanted if w[0].name not in SPARED], run)
            lost = prober.having(importance).together([each.formats for each in found])
            found = [each.losing(divergence.mean) for each, divergence in zip(found, lost, strict=True)]
    choices = [
        _choice(target.policy.name, model, losses, each) for target, each in zip(wished, found, strict=True)
    ]
    if run.work is not None:
        keep_choices(run.work, choices)
    made = {
        target.path: _with(target, choice, tensors) for target, choice in zip(wished, choices, strict=True)
    }
    return [made.get(target.path, target) for target in targets], importance


def _keeping_codes(importance: Importance, size: int, run: Run) -> Importance:
    """The same: the codes that what is chosen is measured with are those that are written, where there is
    room for those ``size`` bytes twice.
    """
    if run.work is None or importance.optimization is None or disk_usage(run.work).free < 2 * size:
        return importance
    kept = until_the_end(contextlib.closing(KeptCodes(run.work / CODES)))
    return replace(importance, optimization=replace(importance.optimization, kept=kept))


def predicted_of(output: Output) -> float | None:
    """What a file made was predicted to lose, in nats; None where nobody has chosen its formats."""
    return None if output.choice is None else output.choice.predicted


def refuse_impossible(
    targets: Sequence[Target],
    expected: Expected,
    importance: Importance,
    options: Options,
    plan_of: PlanOf,
    run: Run,
) -> None:
    """Raise InputError before any long work: for encoders, and sizes and losses below what is on the menu.

    ``importance`` says which tensors will have data.
    """
    model = expected.model
    wished = [target for target in targets if target.wish is not None and target.wish.kind != "policy"]
    if not wished:
        return
    refuse_silent(model, encoder=expected.family.encoder_only)
    menu = _menu(options)
    tensors = choosable(model, wished[0].policy)
    sizes = {tensor.name: dict.fromkeys(offered(tensor, menu, importance), 0.0) for tensor in tensors}
    chooser = Chooser(tensors, Losses(sizes, {}), model, plan_of)
    for target in wished:
        if target.wish is not None and target.wish.kind != "divergence":
            chooser.choose(target)
    refuse_out_of_reach(wished, tensors, expected, menu, _texts(options), importance, run, calibrated=False)


def _prober(
    expected: Expected, tensors: Sequence[Tensor], importance: Importance | None, options: Options, run: Run
) -> Prober:
    windows = text_windows(expected, list(_texts(options).values()), tokens=None, window=None)
    how = VerifyOptions(
        threads=run.threads or available_cores(), progress=run.progress, announce=run.announce
    )
    return Prober(
        expected, tensors, importance, *probe_windows(expected.model, windows), how, probes_kept(run)
    )


def _chosen_before(
    wished: Sequence[Target], menu: Sequence[Format], options: Options, run: Run
) -> Mapping[str, Choice] | None:
    """What an ended run for the same files has chosen from the same text, if this one goes on with it."""
    journal = journal_of([path for target in wished for path in target.paths]) if run.resume else None
    kept = {} if journal is None else kept_choices(journal)
    kept = kept or ({} if run.work is None or not run.resume else kept_choices(run.work))
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
    return Losses(of, {key: value for key, value in known.measured.items() if key not in OF_A_CHOICE})


def _with(target: Target, choice: Choice, tensors: Sequence[Tensor]) -> Target:
    """The target with the policy of a choice; what a tensor cannot have falls back as in recipes."""
    policy = chosen_policy(target.policy.name, choice.formats, tensors, target.policy)
    return replace(target, policy=policy, choice=choice)


def _choice(label: str, model: Model, losses: Losses, found: Found) -> Choice:
    """What was found, with the losses as they add up to what it loses as a whole."""
    of = {
        name: {each.name: loss * found.factor for each, loss in of.items()} for name, of in losses.of.items()
    }
    recipe = {"recipe": found.recipe} if found.recipe else {}
    measured = {**losses.measured, **found.measured, **recipe}
    return Choice(label, model.arch, found.formats, float(f"{found.predicted:.4g}"), of, measured)
