"""The plans of a conversion's files, of all targets at once or of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..converters.family import Companion
from ..converters.gguf_plan import FilePlan, plan_file
from ..converters.targets import Target
from ..core.model import Model
from ..quant.importance import Importance
from ..quant.policy import choose_formats, quantization_metadata
from ..quant.provenance import provenance


def plan_of_target(
    model: Model, companions: Sequence[Companion], importance: Importance | None, target: Target
) -> FilePlan:
    """The plan of one target's file."""
    return plan_files(model, [target], companions, importance)[1][0]


def plan_files(
    model: Model,
    targets: Sequence[Target],
    companions: Sequence[Companion],
    importance: Importance | None = None,
) -> tuple[Model, list[FilePlan]]:
    """The model with notes on fallbacks, and the plan of every file, which names its companions."""
    named = {key: value for companion in companions for key, value in companion.keys.items()}
    choices = [choose_formats(model, target.policy, importance) for target in targets]
    notes = dict.fromkeys(note for choice in choices for note in choice.notes)
    model = replace(model, notes=(*model.notes, *notes))
    plans = []
    for target, choice in zip(targets, choices, strict=True):
        formats = [choice[tensor.name] for tensor in model.tensors]
        how = provenance(target.choice, importance if target.policy.quantizes else None)
        keys = {**quantization_metadata(target.policy, importance), **how, **named}
        plans.append(plan_file(target.path, model, formats, keys, target.split_size))
    return model, plans
