"""The policy of a file whose formats were chosen, tensor by tensor."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from ..core.errors import InputError
from ..core.gguf_file import shown
from ..core.model import Model
from ..core.tensor import Tensor
from .choice_groups import in_layers
from .formats import Format
from .named_recipes import POLICIES, Policy
from .parts import FOREIGN, kind_of, may_be_quantized
from .policy import asked_format
from .policy_file import Choice


def choosable(model: Model, policy: Policy) -> tuple[Tensor, ...]:
    """The tensors whose formats are to be chosen: matrices llama-quantize quantizes, but for those
    ``policy`` decides by name. Raises InputError for models with rules kconv does not know.
    """
    if model.arch in FOREIGN:
        raise InputError(f"kconv does not know llama-quantize's rules for {model.arch}")
    kind = kind_of(model)
    return tuple(
        tensor
        for tensor in model.tensors
        if may_be_quantized(tensor.name, tensor.shape)
        and asked_format(tensor.name, policy, kind) is None
        and not (policy.keep_wo and model.has_wide_input(tensor.name))
    )


def pending_policy(label: str, asked: Policy) -> Policy:
    """What stands for a policy until it is chosen; ``asked`` has what was asked for by name."""
    return replace(asked, name=label)


def chosen_policy(
    label: str, formats: Mapping[str, Format], tensors: Iterable[Tensor], asked: Policy
) -> Policy:
    """The policy that gives the tensors of these names these formats; ``asked`` decides what it names.

    The file says it is of the recipe whose own format most of its layers' weights have, and that recipe's
    rules decide what is not named.
    """
    weights: Counter[Format] = Counter()
    for tensor in tensors:
        if tensor.name in formats and in_layers(tensor.name):
            weights[formats[tensor.name]] += math.prod(tensor.shape)
    most = max(weights, key=lambda format: weights[format]) if weights else next(iter(formats.values()))
    recipe = _recipe_of(most)
    return replace(
        asked,
        name=label,
        default=recipe.default,
        file_type=recipe.file_type,
        rules=recipe.rules,
        exact=dict(formats),
    )


def _recipe_of(format: Format) -> Policy:
    """The recipe of a format: of several its ``_M``."""
    own = [policy for policy in POLICIES.values() if policy.default == format]
    return next((policy for policy in own if policy.name.endswith("_M")), own[0])


def refuse_other_architecture(choice: Choice, model: Model, where: str) -> None:
    """Raise InputError for a choice that was made for a model of other tensors, or that names tensors whose
    format is never chosen, where it would do nothing.
    """
    names = {tensor.name for tensor in model.tensors}
    strange = [name for name in choice.formats if name not in names]
    if choice.arch != model.arch or strange:
        which = (
            f"of {shown(choice.arch)}, this is {model.arch}"
            if choice.arch != model.arch
            else f"has {shown(strange[0])}"
        )
        raise InputError(
            f"{where} was chosen for another model: {which}",
            hint="it fits fine-tunes of the model it was chosen for; choose anew with --target-size",
        )
    free = {tensor.name for tensor in model.tensors if may_be_quantized(tensor.name, tensor.shape)}
    if fixed := [name for name in choice.formats if name not in free]:
        raise InputError(
            f"{where}: the format of {shown(fixed[0])} cannot be chosen, it is no matrix that is quantized",
            hint="take it out of [formats]",
        )
