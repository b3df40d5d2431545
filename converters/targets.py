"""Which files a conversion makes, and under which names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.checkpoint import Checkpoint
from ..core.errors import OutputExists, UsageError
from ..core.files import refuse_existing
from ..core.model import Model
from ..core.reading import hub_origin
from ..core.tensor import DType
from ..quant.policy import Policy, parse_policy
from .recipe import Companion
from .results import Options


@dataclass(frozen=True)
class Target:
    """One GGUF to make, its policy, and the files beside it."""

    path: Path
    policy: Policy
    manifest: Path
    modelfile: Path | None = None

    @property
    def paths(self) -> list[Path]:
        """Every file of this target, the GGUF first."""
        return [self.path, self.manifest, *([self.modelfile] if self.modelfile else [])]


@dataclass(frozen=True)
class CompanionTarget:
    """A companion and its place beside the targets; ``kept`` if it lies there already and stays as it is."""

    path: Path
    companion: Companion
    kept: bool


def check_request(output: str | Path | None, types: Sequence[str], *, pure: bool) -> None:
    """Refuse with UsageError what makes no sense whatever the checkpoint."""
    for name in types:
        if name.lower() != "auto":
            parse_policy(name, pure=pure)
    different = {name.lower() for name in types}
    if output is not None and Path(output).suffix == ".gguf" and len(different) > 1:
        raise UsageError(
            f"-o {output} names one file, but {len(different)} types were asked for",
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
    policies = {
        policy.name: policy
        for policy in (parse_policy(name, pure=options.pure, keep_wo=options.keep_wo) for name in names)
    }
    place = Path(output) if output is not None else Path()
    targets = []
    for policy in policies.values():
        path = (
            place
            if place.suffix == ".gguf"
            else place / f"{checkpoint_name(checkpoint)}-{policy.display}.gguf"
        )
        beside = path.with_suffix(".Modelfile") if modelfile else None
        targets.append(Target(path, policy, manifest_path(path), beside))
    for path in (path for target in targets for path in target.paths):
        refuse_existing(path, force=force)
    return targets


def choose_companion_targets(
    checkpoint: Checkpoint, companions: Sequence[Companion], targets: Sequence[Target], *, force: bool
) -> list[CompanionTarget]:
    """One file for each companion, beside the targets and for all of them; OutputExists if it is another's.

    The one an earlier conversion of this checkpoint has left, to another type say, serves these files, too.
    """
    folder, chosen = targets[0].path.parent, []
    for companion in companions:
        path = companion.place(folder, checkpoint_name(checkpoint))
        there = not force and path.is_file()
        kept = there and companion.lies_at(path)
        if there and not kept:
            raise OutputExists(
                f"{path} exists already and is not that of this checkpoint (another model's, or damaged)",
                hint="choose another -o; --force overwrites it, and what it belongs to will not run any more",
            )
        if not kept:
            refuse_existing(path, force=force)
        if any(path in target.paths for target in targets):
            raise UsageError(
                f"-o {path} is the name of a file this model needs besides", hint="choose another -o"
            )
        chosen.append(CompanionTarget(path, companion, kept))
    return chosen


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
