"""Which files a conversion makes, and under which names."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.checkpoint import Checkpoint
from ..core.errors import OutputExists, UsageError
from ..core.files import refuse_existing
from ..core.gguf_split import parse_split_size
from ..core.model import Model
from ..core.reading import hub_origin
from ..core.tensor import DType
from ..quant.policy import Policy, parse_policy
from ..quant.wish import Wish
from .family import Companion
from .gguf_plan import FilePlan
from .mapping import parameters
from .results import Options, Output

if TYPE_CHECKING:
    from ..quant.policy_file import Choice


@dataclass(frozen=True)
class Target:
    """One GGUF to make, its policy, and the files beside it.

    ``split_size``: in files of at most so many bytes of weights. ``parts`` are its files, once planned; then
    ``path`` is the first of them. ``variant`` is the type with changes of its own (see ``policy_of``). With a
    ``wish`` the policy is to be chosen; the ``choice`` goes into ``policy_file``.
    """

    path: Path
    policy: Policy
    manifest: Path
    modelfile: Path | None = None
    split_size: int | None = None
    parts: tuple[Path, ...] = ()
    variant: str = ""
    wish: Wish | None = None
    choice: Choice | None = None
    policy_file: Path | None = None

    @property
    def type(self) -> str:
        """The recipe's name, and what was changed in it for this file alone: ``q4_K_M:pure``."""
        return self.variant or self.policy.name

    @property
    def paths(self) -> list[Path]:
        """Every file of this target, the GGUF first."""
        beside = (self.modelfile, self.policy_file)
        return [*(self.parts or [self.path]), self.manifest, *(path for path in beside if path is not None)]

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


_ENDINGS_OF_FILES = (".gguf", ".ggml", ".ggjt", ".bin", ".onnx", ".safetensors", ".pt", ".pth")
_MISSPELT = 0.75  # .ggfu, .guff, .gguff


def learned_path(targets: Sequence[Target], checkpoint: Checkpoint, options: Options) -> Path:
    """Where a conversion keeps the importance data, or the full statistics, it learns from texts."""
    first = targets[0].path
    return statistics_beside(first, checkpoint) if options.optimize else first.with_suffix(".imatrix.gguf")


def statistics_beside(output: Path, checkpoint: Checkpoint) -> Path:
    """Where the full statistics are kept that an ``output`` is made with; they do for all of a checkpoint."""
    return output.parent / f"{checkpoint_name(checkpoint)}-statistics.gguf"


def refuse_idle_keep_wo(model: Model, options: Options) -> None:
    """Raise UsageError for ``keep_wo`` where the model has no such matrices."""
    if options.keep_wo and not any(model.has_wide_input(tensor.name) for tensor in model.tensors):
        raise UsageError(
            f"--keep-wo is for T5 and ByT5; this checkpoint becomes {model.arch}", hint="leave it out"
        )


def refuse_odd_ending(output: str | Path | None) -> None:
    """Raise UsageError for a name that would become a folder where a file was meant."""
    path = None if output is None else Path(output)
    if path is None or path.suffix == ".gguf" or path.is_dir():
        return
    if path.suffix.lower() in _ENDINGS_OF_FILES or difflib.get_close_matches(
        path.suffix.lower(), [".gguf"], cutoff=_MISSPELT
    ):
        onnx = "; for ONNX use kconv to-onnx" if path.suffix.lower() == ".onnx" else ""
        raise UsageError(
            f"-o {output} ends in {path.suffix}, but names of GGUF files end in .gguf",
            hint=f"pass -o {shlex.quote(str(path.with_suffix('.gguf')))}, or a folder{onnx}",
        )


def refuse_one_file_for_many(output: str | Path | None, types: int) -> None:
    """Raise UsageError where ``output`` is one file and several were asked for."""
    if output is not None and Path(output).suffix == ".gguf" and types > 1:
        raise UsageError(
            f"-o {output} is the name of one file, but {types} types were requested",
            hint="give a folder with -o, or a single type",
        )


def refuse_same_names(targets: Sequence[Target]) -> None:
    """Raise UsageError where two types would be one file, be it only on a disk that ignores case."""
    seen: dict[str, Target] = {}
    for target in targets:
        other = seen.setdefault(str(target.path).casefold(), target)
        if other is not target:
            raise UsageError(
                f"{other.type} and {target.type} would both be written to {target.path}",
                hint="convert them one at a time, each with its own name (-o NAME.gguf)",
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
    names = with_auto(options.types, own_type(model))
    policies = {type_of(name, options): policy_of(name, options) for name in names}
    place = Path(output) if output is not None else Path()
    targets = []
    for type_name, policy in policies.items():
        file = f"{checkpoint_name(checkpoint)}-{label_of(type_name)}.gguf"
        path = place if place.suffix == ".gguf" else place / file
        beside = path.with_suffix(".Modelfile") if modelfile else None
        targets.append(
            Target(path, policy, manifest_path(path), beside, split_size(options), variant=type_name)
        )
    targets += wished_targets(checkpoint_name(checkpoint), place, options, modelfile=modelfile)
    refuse_same_names(targets)
    for path in (path for target in targets for path in target.paths):
        refuse_existing(path, force=force)
    return targets


def wished_targets(name: str, place: Path, options: Options, *, modelfile: bool) -> list[Target]:
    """The files whose formats are chosen, with policies that are still to be made."""
    if not options.chosen:
        return []
    from ..quant.chosen_policy import pending_policy
    from ..quant.policy_file import policy_label

    label = "" if options.chosen.policy is None else policy_label(options.chosen.policy)
    label = label.removeprefix(f"{name}-") or label  # kconv itself names policies NAME-3M
    made = []
    for wish in options.chosen.wishes(label):
        ending = re.sub(r"[^\w.]+", "-", wish.label)
        path = place if place.suffix == ".gguf" else place / f"{name}-{ending}.gguf"
        beside = path.with_suffix(".Modelfile") if modelfile else None
        policy = pending_policy(wish.label, policy_of("q8_0", options))
        file = None if wish.kind == "policy" else path.with_suffix(".policy.toml")
        made.append(
            Target(path, policy, manifest_path(path), beside, split_size(options), (), wish.label, wish,
                   policy_file=file)
        )  # fmt: skip
    return made


def with_auto(names: Sequence[str], type_name: str) -> tuple[str, ...]:
    """The names of types with ``type_name`` in place of ``auto``."""
    return tuple(type_name if name.lower() == "auto" else name for name in names)


def split_size(options: Options) -> int | None:
    """Bytes of weights in a file; None for all in one. Raises UsageError."""
    return None if options.split_max_size is None else parse_split_size(options.split_max_size)


def policy_of(name: str, options: Options) -> Policy:
    """The policy of that name with what was asked for besides. Raises UsageError.

    A name may be that of a variant, with changes of its own behind colons: ``q4_k_m:pure``,
    ``q4_k_m:output=q8_0``, ``q4_k_m:embedding=q8_0``, ``q4_k_m:attn_v=q6_K:ffn_down=q5_K`` (patterns, which
    come before those asked for of all).
    """
    name, *changes = name.split(":")
    changes = [change.lower() for change in changes]  # as patterns are, so that :PURE is :pure
    named = dict(change.split("=", 1) for change in changes if change.startswith(("output=", "embedding=")))
    patterns = tuple(
        change for change in changes if change != "pure" and change.partition("=")[0] not in named
    )
    return parse_policy(
        name,
        pure=options.pure or "pure" in changes,
        keep_wo=options.keep_wo,
        tensor_types=(*patterns, *options.tensor_types),
        output_type=named.get("output", options.output_type),
        embedding_type=named.get("embedding", options.embedding_type),
    )


def type_of(name: str, options: Options) -> str:
    """The name in the table's spelling, with a variant's changes: ``q4_K_M``, ``q4_K_M:pure``."""
    return policy_of(name, options).name + "".join(name.partition(":")[1:]).lower()


def label_of(type_name: str) -> str:
    """A type as it stands in a file's name: ``Q4_K_M``; of a variant ``Q4_K_M-output-q8_0``."""
    name, *changes = type_name.split(":")
    return "-".join([name.upper(), *(re.sub(r"[^\w.]+", "-", change).strip("-") for change in changes)])


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
                f"{path} already exists and does not belong to this checkpoint (it belongs to another "
                "model or is damaged)",
                hint=(
                    "choose another -o; --force overwrites it, but files that need the old one will no "
                    "longer run"
                ),
            )
        if not kept:
            refuse_existing(path, force=force)
        if any(path in target.paths for target in targets):
            raise UsageError(
                f"-o {path} is the name of another file this model needs", hint="choose another -o"
            )
        chosen.append(CompanionTarget(path, companion, kept))
    return chosen


def output_of(target: Target, plan: FilePlan, size: int, model: Model) -> Output:
    """What has been made of a target; ``size`` in bytes."""
    bits = 8 * plan.data_bytes / max(1, parameters(model))
    formats = tuple(plan.weights.items())
    parts = target.parts if len(target.parts) > 1 else ()
    return Output(target.path, target.type, size, bits, formats, target.manifest, target.modelfile, parts,
                  target.choice, target.policy_file)  # fmt: skip


FOLDER_MANIFEST = "kconv.manifest.json"
"""Stands in every folder of ONNX files kconv makes: source, options, versions, formats, proof."""


def manifest_path(path: Path) -> Path:
    """``x.gguf`` -> ``x.gguf.manifest.json``; that of a folder lies in it."""
    return path / FOLDER_MANIFEST if path.is_dir() else path.with_name(path.name + ".manifest.json")


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
    return re.sub(r"[^\w.\-+ ()\[\],]", "_", name).strip() or "model"
