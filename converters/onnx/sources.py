"""Importance data, which go by the names of a GGUF, under the checkpoint's, which weights of ONNX have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...core.checkpoint import Checkpoint
from ...core.model import Model
from ...quant.full_statistics import Member
from ...quant.importance import Importance, values_of
from ..family import AnyFamily
from ..mapping import sources_of


def by_source(importance: Importance, family: AnyFamily, checkpoint: Checkpoint, model: Model) -> Importance:
    """The same of the tensors a GGUF's are made from, with how codes are chosen, where that is known.

    What flows into matrices that are joined flows into each; a stack's matrices may be tensors of their own.
    Raises InputError for data of another model.
    """
    values, members, trials = {}, {}, {}
    full, optimization = importance.full, importance.optimization
    tensors, sources = {tensor.name: tensor for tensor in model.tensors}, sources_of(family, checkpoint)
    known_trials = {} if optimization is None else optimization.trials
    formats = dict.fromkeys(format for _, _, format in known_trials)
    for target, own in sources.items():
        tensor = tensors.get(target)
        known = None if tensor is None else values_of(tensor, importance)
        if tensor is None or known is None:
            continue
        experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
        for source, matrices in _divided(own, experts):
            values[source] = known.reshape(experts, -1)[matrices].reshape(-1)
            for place, matrix in enumerate(range(experts)[matrices]):
                key: Member = (target, matrix)
                if full is not None and key in full.members:
                    members[source, place] = full.members[key]
                for format in formats:
                    if (*key, format) in known_trials:
                        trials[source, place, format] = known_trials[*key, format]
    full = None if full is None else replace(full, members=members)
    if optimization is not None and full is not None:
        optimization = replace(optimization, statistics=full, trials=trials)
    return replace(importance, values=values, full=full, optimization=optimization)


def _divided(sources: Sequence[str], experts: int) -> Iterator[tuple[str, slice]]:
    """Which of a stack's matrices each source has."""
    for number, source in enumerate(sources):
        alone = experts > 1 and len(sources) == experts
        yield source, slice(number, number + 1) if alone else slice(0, experts)
