"""Writing the files of several targets and what stands beside them: all appear together, or none does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..converters.done_pieces import Done, read_done, resumed_text
from ..converters.gguf_plan import FilePlan, plan_companion
from ..converters.gguf_writer import (
    Written,
    begin_files,
    finished,
    plan_writing,
    write_files,
    write_pieces,
)
from ..converters.hashes import SourceFile, SourceHashes
from ..converters.journal import Journal, JournalFolder, fingerprint, source_stamps
from ..converters.kept_choices import keep_choices
from ..converters.manifest import manifest_text
from ..converters.mapping import parameters
from ..converters.pieces import Piece
from ..converters.results import CompanionFile, Output
from ..converters.targets import CompanionTarget, Target, output_of
from ..converters.write_plan import WritePlan, sound_pieces
from ..core.claims import new_mark
from ..core.elsewhere import Stream
from ..core.errors import EnvironmentProblem
from ..core.gguf_file import read_header
from ..core.leftovers import discard
from ..core.model import Model
from ..core.outlet import Outlet
from ..core.reading import file_sha256
from ..quant.importance import Importance
from .results import Run
from .resume import find_kept, hold_to, is_published, journaled_files, not_as_written

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
    proven: bool = False,
    stream: Stream | None = None,
    run: Run,
) -> tuple[list[Output], list[CompanionFile], Model]:
    """All files of all targets, their companions, manifests and Modelfiles, from one read of the weights.

    ``source`` hashes meanwhile what is read; ``modelfile`` makes an Ollama Modelfile for the file of that
    name. A journal is kept meanwhile; if the files are to be ``proven``, it stays until whoever does that
    discards it. What an ended run has left goes on where ``run`` says so (resume.py). Weights from a
    ``stream`` are known to be right when all have come: the journal says what has. The model comes back with
    notes on its weights. Raises what reading, encoding and writing raise; then nothing has its final name.
    """
    paths = [path for target in targets for path in target.paths]
    run.observer.writing([target.type for target in targets])

    @functools.cache
    def identity() -> dict[str, Any]:
        layouts = (layout for plan in plans for layout in plan.layout())
        return fingerprint(layouts, importance=importance, allow_nan=allow_nan)

    stamps = source_stamps(source.sources)
    kept = find_kept(paths, identity, stamps, run)
    hold_to(kept, stream, paths)
    parts = [path for target in targets for path in target.parts]
    if kept is not None and is_published(kept, paths):
        begun = plan_writing(model.tensors, plans, parts, allow_nan=allow_nan, importance=importance)
        written = _published(begun, read_done(kept.folder), run)
        outputs, model = _outputs(targets, plans, written, model)
        if not proven:
            discard(paths)
        return outputs, [_write_companion(each, None) for each in companions], model
    paths += [each.path for each in companions if not each.kept]
    content = partial(_content, identity, stamps)
    proven = proven and run.outlet is None
    with journaled_files(paths, kept, content, run, proven=proven) as (made, journal):
        temporary = dict(zip(paths, made, strict=True))
        beside = [_write_companion(each, temporary.get(each.path)) for each in companions]
        choices = [target.choice for target in targets if target.choice is not None]
        if choices and stream is None and run.outlet is None:
            journal.establish(partial(keep_choices, choices=choices))
        done = Done() if kept is None else read_done(kept.folder)
        temporaries = [temporary[path] for path in parts]
        if run.outlet is not None:
            run.outlet.about(content(), provisional=stream is not None or allow_nan)
        begun = begin_files(
            model.tensors, plans, temporaries, allow_nan=allow_nan, importance=importance, outlet=run.outlet
        )
        with source as hashes:
            written = _write(begun, done, journal, identity, run, stream)
            files = hashes.result(run.progress)
        run.progress("completing", 0, 0)
        outputs, model = _outputs(targets, plans, written, model)
        common = describe(model, files, beside)
        for plan, output in zip(plans, outputs, strict=True):
            text = manifest_text(plan, output, common)
            temporary[output.manifest].write_text(text, encoding="utf-8", errors="backslashreplace")
            if output.policy is not None and output.choice is not None:
                temporary[output.policy].write_text(output.choice.to_toml(), encoding="utf-8")
            if output.modelfile is not None and modelfile is not None:
                text = modelfile(output.path.name)
                temporary[output.modelfile].write_text(text, encoding="utf-8", errors="surrogateescape")
    return outputs, beside, model


def _content(
    identity: Callable[[], Mapping[str, Any]], stamps: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    return {"fingerprint": identity(), "sources": list(stamps)}


def _outputs(
    targets: Sequence[Target], plans: Sequence[FilePlan], written: Written, model: Model
) -> tuple[list[Output], Model]:
    """What was made, and the model with notes on its weights."""
    model = replace(model, notes=(*model.notes, *written.notes))
    return [output_of(*each, model) for each in zip(targets, plans, written.sizes, strict=True)], model


def _write(
    plan: WritePlan,
    done: Done,
    folder: JournalFolder,
    identity: Callable[[], Mapping[str, Any]],
    run: Run,
    stream: Stream | None,
) -> Written:
    """All pieces that are not ``done``; the others are checked."""
    pieces = plan.pieces()
    if run.outlet is not None:
        return _send(plan, pieces, run, run.outlet, stream)
    sound = (
        sound_pieces(plan, done.checks, threads=run.threads, progress=run.progress) if done.checks else set()
    )
    left = [piece for piece in pieces if piece not in sound]
    if sound:
        run.announce(resumed_text(len(sound), len(pieces)))
    if run.executor is not None:
        from .spread import write_spread

        written = write_spread(plan, left, folder, identity(), run.executor, run)
        return finished(plan, done.not_finite | written.not_finite, written.kernels)
    with Journal(folder, new_mark(), [file.path for file in plan.files], stream) as journal:
        written = write_pieces(
            plan, left, threads=run.threads, journal=journal, progress=run.progress, stream=stream
        )
    return finished(plan, done.not_finite | written.not_finite, written.kernels)


def _send(
    plan: WritePlan, pieces: Sequence[Piece], run: Run, outlet: Outlet, stream: Stream | None
) -> Written:
    """The pieces that are not where they go, in the order of their bytes, so that few parts are open."""
    pieces = sorted(plan.missing(pieces, outlet), key=lambda piece: (piece.index, piece.start))
    written = write_pieces(
        plan, pieces, threads=run.threads, progress=run.progress, stream=stream, outlet=outlet
    )
    return finished(plan, written.not_finite, written.kernels, on_disk=outlet.keeps)


def _published(plan: WritePlan, done: Done, run: Run) -> Written:
    """Files a run had finished before it was ended. Raises OutputExists where others have their names."""
    problem = None
    try:
        sound = sound_pieces(plan, done.checks, threads=run.threads, progress=run.progress)
        if len(sound) == len(plan.pieces()):
            run.announce("resumed: the files are complete")
            return finished(plan, done.not_finite)
    except EnvironmentProblem as error:
        problem = error
    raise not_as_written(plan.files[0].path) from problem


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
