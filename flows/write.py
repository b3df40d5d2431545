"""Writing the files of several targets and what stands beside them: all appear together, or none does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..converters.gguf_plan import FilePlan, plan_companion
from ..converters.gguf_writer import write_files
from ..converters.hashes import SourceFile, SourceHashes
from ..converters.manifest import manifest_text
from ..converters.mapping import parameters
from ..converters.results import CompanionFile, Output
from ..converters.targets import CompanionTarget, Target, output_of
from ..core.files import atomic_files
from ..core.gguf_file import read_header
from ..core.model import Model
from ..core.reading import file_sha256
from ..quant.importance import Importance
from .results import Run

Describe = Callable[[Model, Sequence[SourceFile], Sequence[CompanionFile]], Mapping[str, Any]]
"""What the manifests have in common, of the model with its last notes, the source's files, the companions."""


def write_targets(
    model: Model,
    targets: Sequence[Target],
    plans: Sequence[FilePlan],
    source: SourceHashes,
    describe: Describe,
    *,
    companions: Sequence[CompanionTarget] = (),
    modelfile: Callable[[str], str] | None = None,
    allow_nan: bool = False,
    importance: Importance | None = None,
    run: Run,
) -> tuple[list[Output], list[CompanionFile], Model]:
    """All files of all targets, their companions, manifests and Modelfiles, from one read of the weights.

    ``source`` hashes meanwhile what is read; ``modelfile`` makes an Ollama Modelfile for the file of that
    name. The model comes back with notes on its weights. Raises what reading, encoding and writing raise;
    then nothing has its final name.
    """
    paths = [path for target in targets for path in target.paths]
    paths += [each.path for each in companions if not each.kept]
    with atomic_files(paths, force=run.force) as made:
        temporary = dict(zip(paths, made, strict=True))
        beside = [_write_companion(each, temporary.get(each.path)) for each in companions]
        with source as hashes:
            written = write_files(
                model.tensors,
                plans,
                [temporary[path] for target in targets for path in target.parts],
                threads=run.threads,
                allow_nan=allow_nan,
                importance=importance,
                progress=run.progress,
            )
            files = hashes.result(run.progress)
        model = replace(model, notes=(*model.notes, *written.notes))
        outputs = [output_of(*each, model) for each in zip(targets, plans, written.sizes, strict=True)]
        common = describe(model, files, beside)
        for plan, output in zip(plans, outputs, strict=True):
            text = manifest_text(plan, output, common)
            temporary[output.manifest].write_text(text, encoding="utf-8", errors="backslashreplace")
            if output.modelfile is not None and modelfile is not None:
                text = modelfile(output.path.name)
                temporary[output.modelfile].write_text(text, encoding="utf-8", errors="surrogateescape")
    return outputs, beside, model


def _write_companion(target: CompanionTarget, temporary: Path | None) -> CompanionFile:
    """A companion, written unless it is there already."""
    model = target.companion.model
    if temporary is None:
        size = read_header(target.path).size
    else:
        plan = plan_companion(target.path, model)
        size = write_files(model.tensors, [plan], [temporary]).sizes[0]
    digest = file_sha256(temporary or target.path)
    keys = target.companion.keys
    return CompanionFile(target.path, model.arch, size, digest, parameters(model), keys, target.kept)
