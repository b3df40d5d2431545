"""What a step of a batch still has to make, and how large that gets: ``plan_step``, a task of its own.

Only headers are read, as for ``kconv plan``, and the vocabulary is not compared, which would take longer than
many a small conversion; the files of the tokenizer stand for its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..converters.family import AnyFamily
from ..converters.intake import open_model
from ..converters.mapping import build, parameters
from ..converters.onnx.formats import choose_onnx_formats
from ..converters.onnx.options import parse_activations
from ..converters.requests import check_request
from ..converters.results import Options
from ..converters.targets import (
    Target,
    choose_companion_targets,
    choose_targets,
    refuse_idle_keep_wo,
)
from ..core.checkpoint import Checkpoint
from ..core.errors import InputError, KconvError, UsageError
from ..core.model import Model
from ..hub.checkpoint import remote_checkpoint
from ..hub.names import parse_checkpoint_name
from ..hub.source import resolve
from ..hub.wanted import small_files
from ..quant.importance import importance_to_be, read_importance
from ..quant.wish import Wish
from .batch_downloads import Download, absent, delete
from .batch_fingerprint import options_record, versions_record
from .batch_jobs import Step
from .batch_journal import Record
from .batch_judge import Look, PlannedOutput, all_done, judged
from .choose import with_choices
from .plan_files import plan_files, plan_of_target
from .results import Run
from .to_onnx import onnx_folder_name


@dataclass(frozen=True)
class StepPlan:
    """What a step has to do. ``source_bytes`` are those of the checkpoint's weights.

    Of a source on the Hub ``commit`` is the one its revision means now, ``download`` what is to be fetched.
    """

    step: Step
    outputs: tuple[PlannedOutput, ...]
    source_bytes: int = 0
    commit: str | None = None
    download: Download | None = None

    @property
    def to_make(self) -> list[PlannedOutput]:
        """The outputs that are not done and can be."""
        return [output for output in self.outputs if output.state == "make"]

    @property
    def bytes(self) -> int:
        """About what the outputs to make take."""
        return sum(output.bytes for output in self.to_make)


def plan_step(step: Step, records: Mapping[str, Record], force: bool, again: bool) -> StepPlan:
    """Look at a step's source and at what lies where its outputs go; ``records`` are the journal's on them.

    With ``force`` files that were not made by this batch may be replaced, with ``again`` nothing counts as
    done. Of a source on the Hub only small files and headers are fetched. Raises what a conversion raises
    before it reads weights, but for single types.
    """
    if step.format == "gguf":
        check_request(step.output, step.gguf_options())
    name = parse_checkpoint_name(step.address)
    found = None if name is None else resolve(name)
    look = Look(step, None, records, force, again, options_record(step), versions_record(step))
    if found is None:
        return _planned(look, *open_model(step.source))
    look, before = replace(look, commit=found.commit), absent(found)
    done = all_done(look)
    if done is not None:
        return StepPlan(step, tuple(done), commit=found.commit, download=before.only(()))
    small = before.only(file.path for file in small_files(found))
    try:
        checkpoint, family = open_model(remote_checkpoint(found))
        plan = _planned(look, checkpoint, family)
    except BaseException:
        delete(small)
        raise
    weights = [path.relative_to(checkpoint.folder).as_posix() for path in checkpoint.weight_files]
    needed = before.only([*(path for path, _, _ in small.files), *weights])
    return replace(plan, commit=found.commit, download=needed)


def _planned(look: Look, checkpoint: Checkpoint, family: AnyFamily) -> StepPlan:
    step, look = look.step, replace(look, checkpoint=checkpoint)
    sizes = _gguf_sizes if step.format == "gguf" else _onnx_sizes
    outputs = []
    for (key, name), found in zip(step.keys.items(), sizes(look, checkpoint, family), strict=True):
        if isinstance(found, KconvError):
            outputs.append(PlannedOutput(key, name, step.output, 0, "refused", error=found))
        else:
            outputs.append(judged(look, key, name, *found))
    return StepPlan(step, tuple(outputs), sum(file.size for file in checkpoint.opened))


def _gguf_sizes(look: Look, checkpoint: Checkpoint, family: AnyFamily) -> list[tuple[Path, int] | KconvError]:
    """Path and bytes for each type, or why it cannot be."""
    step, options = look.step, look.step.gguf_options()
    model, companions = build(family, checkpoint), family.companions(checkpoint)
    refuse_idle_keep_wo(model, options)
    importance = None if options.imatrix is None else read_importance(options.imatrix)
    if options.calibrate:
        importance = importance_to_be(model.tensors)
    beside = _tokenizer_bytes(checkpoint)
    sizes: list[tuple[Path, int] | KconvError] = []
    for name in step.types:
        try:
            alone = step.with_types((name,)).gguf_options()
            (target,) = _target(look, checkpoint, model, alone)
            choose_companion_targets(checkpoint, companions, [target], force=look.force)
            if target.wish is not None and alone.chosen.policy is None:
                sizes.append((target.path, beside + _wished_bytes(target.wish, model)))
                continue
            plan_of = partial(plan_of_target, model, companions, importance)
            (target,), _ = with_choices([target], None, model, importance, alone, plan_of, Run())
            _, (plan,) = plan_files(model, [target], companions, importance)
        except (InputError, UsageError) as error:
            sizes.append(error)
        else:
            sizes.append((plan.paths[0], beside + sum(len(head) + data for head, data in plan.layout())))
    return sizes


def _wished_bytes(wish: Wish, model: Model) -> int:
    """At most what a file takes whose formats are chosen; of a divergence eight bits for each weight."""
    if wish.kind == "bytes":
        return int(wish.value)
    return int((wish.value if wish.kind == "bits" else 8.0) * parameters(model) / 8)


def _target(look: Look, checkpoint: Checkpoint, model: Model, options: Options) -> list[Target]:
    modelfile = bool(look.step.options.get("modelfile", False))
    return choose_targets(checkpoint, model, look.step.output, options, modelfile=modelfile, force=True)


def _onnx_sizes(look: Look, checkpoint: Checkpoint, family: AnyFamily) -> list[tuple[Path, int] | KconvError]:
    model = build(family, checkpoint, "ONNX")
    sizes: list[tuple[Path, int] | KconvError] = []
    halves = parse_activations(look.step.options.get("activations", "f32"))
    for name in look.step.types:
        chosen = choose_onnx_formats(family, checkpoint, model, name, halves=halves)
        weights = sum(
            checkpoint.tensors[tensor].elements * format.block_bytes // format.block_size
            for tensor, format in chosen.formats.items()
            if tensor in checkpoint.tensors and tensor not in checkpoint.aliases
        )
        path = look.step.output / onnx_folder_name(checkpoint, chosen.name)
        sizes.append((path, weights + _tokenizer_bytes(checkpoint)))
    return sizes


def _tokenizer_bytes(checkpoint: Checkpoint) -> int:
    """Of the small files, most of which are the tokenizer."""
    return sum(path.stat().st_size for path in checkpoint.side_files if path not in checkpoint.weight_files)
