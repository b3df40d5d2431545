"""GGUF to GGUF: the weights in other formats and all else as it is, as llama_model_quantize does it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..converters.gguf_source import gguf_model, requantizing_notes, stored_formats
from ..converters.hashes import SourceHashes
from ..converters.manifest import requantized_part
from ..converters.mapping import parameters
from ..converters.recorded import MADE_FROM, read_manifest
from ..converters.requests import check_request
from ..converters.results import Options, Output
from ..converters.targets import (
    Target,
    label_of,
    manifest_path,
    policy_of,
    refuse_one_file_for_many,
    refuse_same_names,
    split_size,
    type_of,
    wished_targets,
)
from ..core.errors import InputError, UsageError
from ..core.gguf_split import base_name
from ..core.model import Model, Note
from ..core.progress import Progress, silent
from ..hub.artifact import local_gguf
from ..quant.formats import Format
from ..quant.gguf_weights import GgufFile, open_gguf
from ..quant.importance import Importance
from ..quant.policy import POLICIES, Policy, choose_formats
from ..quant.wish import wanted
from .choose import with_choices
from .finished import Command, tell_finished
from .full_statistics import given_importance, optimized
from .observer import UNOBSERVED, Observer
from .plan_requantized import AS_IT_IS, COPY, Planner
from .results import Run
from .write import write_targets


@dataclass(frozen=True)
class Request:
    """What the caller asked for: what a conversion may be asked for, too, and what only a GGUF may."""

    options: Options
    allow_requantize: bool = False
    keep_split: bool = False

    def to_manifest(self) -> dict[str, Any]:
        """As plain values."""
        own = {"allow_requantize": self.allow_requantize, "keep_split": self.keep_split}
        return {**self.options.to_manifest(), **own}


@dataclass(frozen=True)
class Requantization:
    """What was done; the fields are those of ``--json``. ``parts`` are the files it was made from."""

    source: Path
    parts: tuple[Path, ...]
    arch: str
    parameters: int
    outputs: tuple[Output, ...]
    notes: tuple[Note, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "source": str(self.source),
            "parts": [str(path) for path in self.parts],
            "architecture": self.arch,
            "parameters": self.parameters,
            "outputs": [output.to_json() for output in self.outputs],
            "notes": [asdict(note) for note in self.notes],
        }


def quantize(
    source: str | Path,
    output: str | Path | None = None,
    *,
    types: Sequence[str],
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    imatrix: str | Path | None = None,
    optimize: bool = False,
    allow_requantize: bool = False,
    allow_nan: bool = False,
    split_max_size: str | None = None,
    keep_split: bool = False,
    rehash: bool = False,
    resume: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
    observer: Observer = UNOBSERVED,
    target_size: str | Sequence[str] = (),
    target_kl: float | Sequence[float] = (),
    menu: Sequence[str] = (),
    policy: str | Path | None = None,
) -> Requantization:
    """Write a GGUF model, in one file or in parts, in each of ``types``, from one read.

    ``source`` may be a file of the Hub: ``hf://org/name/x.gguf``. ``output`` is a file where it ends in
    ``.gguf``, else a folder (default: the current one). The type ``copy`` leaves the weights as they are.
    Weights that are quantized already are quantized anew only with ``allow_requantize``. ``split_max_size``
    (``2G``) makes files of at most so many bytes of weights, ``keep_split`` the parts the source has; else
    there is one file. ``policy`` is a file of formats, or, with ``target_size`` or ``target_kl``, of measured
    losses to choose by. The others are as in ``to_gguf``. Raises KconvError of every kind; nothing is left
    under a final name unless all files are whole.
    """
    options = Options(
        types=tuple(types),
        pure=pure,
        allow_nan=allow_nan,
        verify="off",
        tensor_types=tuple(tensor_types),
        output_type=output_type,
        embedding_type=embedding_type,
        imatrix=None if imatrix is None else str(imatrix),
        split_max_size=split_max_size,
        optimize=optimize,
        chosen=wanted(target_size, target_kl, menu, policy),
    )
    request = Request(options, allow_requantize, keep_split)
    run = Run(force, threads, progress, announce, rehash=rehash, resume=resume, observer=observer)
    return requantize(source, output, request, run)


def requantize(source: str | Path, output: str | Path | None, request: Request, run: Run) -> Requantization:
    """The flow: open, choose formats, plan, write."""
    policies = _policies(request, output)
    importance = given_importance(request.options)
    run.progress("opening", 0, 0)
    source = local_gguf(source, run.progress)
    _refuse_folder(source)
    with open_gguf(source) as file:
        model = gguf_model(file, keep_split=request.keep_split)
        targets = _targets(file, output, policies, request.options)
        planner = Planner(file, model, importance, request.keep_split)
        targets, _ = with_choices(targets, None, model, importance, request.options, planner.plan_of, run)
        asked = [target.policy for target in targets]
        model, chosen = _chosen(file, model, asked, importance, allow=request.allow_requantize)
        plans = [planner.plan(*each) for each in zip(targets, chosen, strict=True)]
        targets = [target.planned(plan) for target, plan in zip(targets, plans, strict=True)]
        _refuse_source(file, targets)
        if run.resume and not run.force:
            sources = {path.name: path for path in file.paths}
            wanted = request.to_manifest()
            tell_finished(
                targets, Command(wanted, sources, "off", key=MADE_FROM, imatrix=request.options.imatrix)
            )
        if importance is not None and request.options.optimize:
            importance, model = optimized(importance, model, plans, run)
        run.observer.opened(file.path, model.arch, parameters(model), file.paths)
        run.observer.noted(model.notes)
        outputs, _, model = write_targets(
            model,
            targets,
            plans,
            SourceHashes(file.opened(), rehash=run.rehash),
            lambda model, files, _: requantized_part(
                _origin(file), request.to_manifest(), model, files, importance
            ),
            allow_nan=request.options.allow_nan,
            importance=importance,
            run=run,
        )
    run.observer.noted(model.notes)
    run.observer.made(outputs, ())
    return Requantization(file.path, file.paths, model.arch, parameters(model), tuple(outputs), model.notes)


def _refuse_folder(source: Path) -> None:
    """Raise UsageError for a checkpoint, which is quantized while it is converted."""
    if source.is_dir() and any(source.glob("*.onnx")):
        raise UsageError(
            f"{source} is an ONNX folder, expected a GGUF file",
            hint="other types of it are made from the checkpoint: kconv to-onnx CHECKPOINT -q q8_0",
        )
    if (source / "config.json").is_file():
        raise UsageError(
            f"{source} is a checkpoint folder, expected a GGUF file",
            hint=f"convert and quantize it in one step: kconv to-gguf {shlex.quote(str(source))} -q q4_k_m",
        )
    inside = sorted(source.glob("*.gguf"))[:1] if source.is_dir() else []
    if inside:
        raise UsageError(
            f"{source} is a folder, expected a GGUF file", hint=f"pass {shlex.quote(str(inside[0]))}"
        )


def _policies(request: Request, output: str | Path | None) -> dict[str, Policy]:
    """By the names of the types. Refuses what makes no sense whatever the source."""
    options = request.options
    if request.keep_split and options.split_max_size is not None:
        raise UsageError("--keep-split and --split-max-size cannot be combined", hint="leave one out")
    others = replace(options, types=tuple(name for name in options.types if name.lower() != COPY))
    if not others.types and not options.chosen and _changes(options):
        raise UsageError(
            f"{COPY} keeps all weights unchanged, but other types were requested for some of them",
            hint="leave out --pure, --tensor-type and the like, or give a type: -q q8_0",
        )
    policies = {type_of(name, options): policy_of(name, options) for name in others.types}
    if len(others.types) < len(options.types):
        policies[COPY] = AS_IT_IS
    if not policies and not options.chosen:
        raise UsageError("no type given", hint="give one with -q, for example -q q4_k_m")
    refuse_one_file_for_many(output, len(policies) + len(options.chosen.wishes()))
    check_request(output, others)
    return policies


def _changes(options: Options) -> bool:
    return bool(options.pure or options.tensor_types or options.output_type or options.embedding_type)


def _targets(
    file: GgufFile, output: str | Path | None, policies: Mapping[str, Policy], options: Options
) -> list[Target]:
    """One a type. ``model-F16.gguf`` becomes ``model-Q4_K_M.gguf``."""
    place, name = Path(output) if output is not None else Path(), base_name(file.path)
    begin, dash, end = name.rpartition("-")
    known = {policy.display for policy in POLICIES.values()}
    stem = begin if dash and end.upper() in known else name
    targets = []
    for type_name, policy in policies.items():
        made = name if policy is AS_IT_IS else f"{stem}-{label_of(type_name)}"
        path = place if place.suffix == ".gguf" else place / f"{made}.gguf"
        size = split_size(options)
        targets.append(Target(path, policy, manifest_path(path), split_size=size, variant=type_name))
    targets += wished_targets(stem, place, options, modelfile=False)
    refuse_same_names(targets)
    return targets


def _chosen(
    file: GgufFile,
    model: Model,
    policies: Iterable[Policy],
    importance: Importance | None,
    *,
    allow: bool,
) -> tuple[Model, list[Mapping[str, Format]]]:
    """The formats under each policy by tensor; the model with notes on them."""
    chosen: list[Mapping[str, Format]] = []
    notes: dict[Note, None] = dict.fromkeys(model.notes)
    for policy in policies:
        if policy is AS_IT_IS:
            chosen.append(stored_formats(model))
            continue
        choice = choose_formats(model, policy, importance)
        notes |= dict.fromkeys((*choice.notes, *requantizing_notes(file, choice.formats, allow=allow)))
        chosen.append(choice.formats)
    return replace(model, notes=tuple(notes)), chosen


def _refuse_source(file: GgufFile, targets: Sequence[Target]) -> None:
    for path in (path for target in targets for path in target.paths):
        if path.exists() and any(path.samefile(part) for part in file.paths):
            raise UsageError(f"{path} is the input itself", hint="choose another -o")


def _origin(file: GgufFile) -> Mapping[str, Any] | None:
    """The manifest beside the source, if it has one that is its own."""
    with suppress(InputError):
        manifest = read_manifest(file.path)
        if manifest is not None and manifest["output"]["bytes"] == file.header.size:
            return manifest
    return None
