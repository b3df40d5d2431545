"""Which files a conversion makes, and under which names."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.checkpoint import Checkpoint
from ..core.errors import UsageError
from ..core.files import refuse_existing
from ..core.gguf_split import parse_split_size
from ..core.model import Model
from ..core.reading import hub_origin
from ..core.tensor import DType
from ..quant.policy import Policy, parse_policy
from .gguf_writer import FilePlan
from .recipe import Companion, parameters
from .results import Options, Output


@dataclass(frozen=True)
class Target:
    """One GGUF to make, its policy, and the files beside it.

    ``split_size``: in files of at most so many bytes of weights. ``parts`` are its files, once planned; then
    ``path`` is the first of them.
    """

    path: Path
    policy: Policy
    manifest: Path
    modelfile: Path | None = None
    split_size: int | None = None
    parts: tuple[Path, ...] = ()

    @property
    def paths(self) -> list[Path]:
        """Every file of this target, the GGUF first."""
        return [*(self.parts or [self.path]), self.manifest, *([self.modelfile] if self.modelfile else [])]

    def planned(self, plan: FilePlan) -> Target:
        """The target with the files its plan makes."""
        first = plan.paths[0]
        return replace(self, path=first, manifest=manifest_path(first), parts=tuple(plan.paths))


@dataclass(frozen=True)
class CompanionTarget:
    """A companion and its place beside the targets; ``kept`` if it lies there already and stays as it is."""

    path: Path
    companion: Companion
    kept: bool


def check_request(output: str | Path | None, options: Options) -> None:
    """Refuse with UsageError what makes no sense whatever the checkpoint."""
    different = {policy_of(name, options).name for name in options.types if name.lower() != "auto"}
    different |= {"auto" for name in options.types if name.lower() == "auto"}
    refuse_one_file_for_many(output, len(different))
    _split_size(options)
    _check_importance(options)


def _check_importance(options: Options) -> None:
    if options.imatrix is not None and options.calibrate:
        raise UsageError(
            "an imatrix was given, and texts to make one of", hint="leave out --imatrix or --calibrate"
        )
    policies = [policy_of(name, options) for name in options.types if name.lower() != "auto"]
    weighs = any(policy.default.quantized or policy.overrides for policy in policies)
    if (options.imatrix is not None or options.calibrate) and not weighs:
        raise UsageError(
            "importance data serve quantized types, and none was asked for", hint="add -q q4_k_m, for example"
        )


def refuse_one_file_for_many(output: str | Path | None, types: int) -> None:
    """Raise UsageError where ``output`` is one file and several were asked for."""
    if output is not None and Path(output).suffix == ".gguf" and types > 1:
        raise UsageError(
            f"-o {output} names one file, but {types} types were asked for",
            hint="give a folder with -o, or one type",
        )


def choose_targets(
    checkpoint: Checkpoint,
    model: Model,
    output: str | Path | None,
    options: Options,
    *,
    modelfile: bool,
    force: bool,
) -> list[Target]:
    """One target a type; OutputExists before any work is done. The request has been checked."""
    names = [own_type(model) if name.lower() == "auto" else name for name in options.types]
    policies = {policy.name: policy for policy in (policy_of(name, options) for name in names)}
    place = Path(output) if output is not None else Path()
    targets = []
    for policy in policies.values():
        path = (
            place
            if place.suffix == ".gguf"
            else place / f"{checkpoint_name(checkpoint)}-{policy.display}.gguf"
        )
        beside = path.with_suffix(".Modelfile") if modelfile else None
        targets.append(Target(path, policy, manifest_path(path), beside, _split_size(options)))
    for path in (path for target in targets for path in target.paths):
        refuse_existing(path, force=force)
    return targets


def _split_size(options: Options) -> int | None:
    return None if options.split_max_size is None else parse_split_size(options.split_max_size)


def policy_of(name: str, options: Options) -> Policy:
    """The policy of that name with what was asked for besides. Raises UsageError."""
    return parse_policy(
        name,
        pure=options.pure,
        keep_wo=options.keep_wo,
        tensor_types=options.tensor_types,
        output_type=options.output_type,
        embedding_type=options.embedding_type,
    )


def choose_companion_targets(
    checkpoint: Checkpoint, companions: Sequence[Companion], targets: Sequence[Target], *, force: bool
) -> list[CompanionTarget]:
    """One file for each companion, beside the targets and for all of them; OutputExists if it is another's.

    The one an earlier conversion of this checkpoint has left, to another type say, serves these files, too.
    """
    folder, chosen = targets[0].path.parent, []
    for companion in companions:
        path = companion.place(folder, checkpoint_name(checkpoint))
        kept = not force and path.is_file() and companion.lies_at(path)
        if not kept:
            refuse_existing(path, force=force)
        if any(path in target.paths for target in targets):
            raise UsageError(
                f"-o {path} is the name of a file this model needs besides", hint="choose another -o"
            )
        chosen.append(CompanionTarget(path, companion, kept))
    return chosen


def output_of(target: Target, plan: FilePlan, size: int, model: Model) -> Output:
    """What has been made of a target; ``size`` in bytes."""
    weights: dict[str, int] = {}
    for info, format in zip(plan.tensors, plan.formats, strict=True):
        weights[format.name] = weights.get(format.name, 0) + math.prod(info.shape)
    bits = 8 * plan.data_bytes / max(1, parameters(model))
    formats = tuple(weights.items())
    parts = target.parts if len(target.parts) > 1 else ()
    return Output(
        target.path, target.policy.name, size, bits, formats, target.manifest, target.modelfile, parts
    )


def manifest_path(path: Path) -> Path:
    """``x.gguf`` -> ``x.gguf.manifest.json``."""
    return path.with_name(path.name + ".manifest.json")


def own_type(model: Model) -> str:
    """The float type most of the checkpoint's weights have: f32, f16 or bf16."""
    weights = dict.fromkeys(DType, 0)
    for tensor in model.tensors:
        weights[tensor.dtype] += tensor.elements
    return max(weights, key=lambda dtype: weights[dtype]).value.lower()


def checkpoint_name(checkpoint: Checkpoint) -> str:
    """The folder's name, or the repository's in a Hub cache, fit for a file name."""
    repository, _ = hub_origin(checkpoint.folder)
    name = repository.rpartition("/")[2] if repository else checkpoint.folder.resolve().name
    return re.sub(r"[^\w.\-+]", "_", name) or "model"
