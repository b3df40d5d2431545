"""Writing a folder of ONNX files: it appears whole or not at all, and goes on where a run was ended."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..converters.card import general_metadata, licence_notice
from ..converters.done_pieces import read_done
from ..converters.hashes import SourceFile, checkpoint_hashes
from ..converters.journal import JournalFolder, fingerprint, source_stamps
from ..converters.manifest import importance_part, manifest_json, source_part, versions
from ..converters.mapping import parameters
from ..converters.onnx.folder import SideFiles
from ..converters.onnx.formats import OnnxFormats
from ..converters.onnx.graph import Graph, Weight
from ..converters.onnx.options import OnnxOptions
from ..converters.targets import FOLDER_MANIFEST as MANIFEST
from ..core.checkpoint import Checkpoint
from ..core.elsewhere import Stream
from ..core.input_files import file_sha256
from ..core.kept import Kept
from ..core.leftovers import discard
from ..core.model import Model, Note
from ..runtimes.onnx_folder import least_of
from .artifacts import README
from .folder_card import card_and_manifest
from .onnx_codes import Codes
from .results import OnnxConversion, Run
from .resume import find_kept, hold_to, is_published, journaled_folder, not_as_written

WeightFiles = Mapping[str, Mapping[str, Graph]]
"""By the path of a file of weights in the folder: the graphs that use it, by their files' names."""


@dataclass(frozen=True)
class Planned:
    """What is to be written and where; ``graph_files`` are names and how many files of weights each has.

    ``codes`` say how those of quantized matrices are chosen, if they are.
    """

    chosen: OnnxFormats
    folder: Path
    graphs: Mapping[str, Graph]
    graph_files: Mapping[str, int]
    codes: Codes | None = None

    @property
    def weights(self) -> dict[str, Weight]:
        """Those of all graphs, each once."""
        return {name: weight for graph in self.graphs.values() for name, weight in graph.weights.items()}

    @property
    def tensors(self) -> dict[str, str]:
        """The format of each weight."""
        return {name: weight.format.name for name, weight in self.weights.items()}

    def weight_files(self, options: OnnxOptions) -> WeightFiles:
        """The graphs that share each file of weights."""
        together: dict[str, dict[str, Graph]] = {}
        for name, graph in self.graphs.items():
            path = Path(options.layout.graph_path(name, self.chosen.name))
            data = options.layout.data_path(name, self.chosen.name)
            together.setdefault(data, {})[path.name] = graph
        return together


def write_folder(
    checkpoint: Checkpoint,
    model: Model,
    planned: Planned,
    beside: SideFiles,
    options: OnnxOptions,
    run: Run,
    *,
    proven: bool,
    card: Callable[[Path], str] | None,
) -> OnnxConversion:
    """Everything but the proof; the card only if none follows.

    What an ended run has left goes on where ``run`` says so (resume.py).
    """
    model = replace(model, metadata=general_metadata(checkpoint))
    notice = licence_notice(model.metadata)
    notes = [*model.notes, *([notice] if notice else []), *planned.chosen.notes, *beside.notes]
    run.observer.noted(notes)
    run.observer.writing([planned.chosen.type])
    path, source = planned.folder.resolve(), checkpoint_hashes(checkpoint, rehash=run.rehash)
    files = planned.weight_files(options)
    identity = functools.cache(partial(_identity, files, options, planned.codes))
    stamps = source_stamps(source.sources)
    kept = find_kept([path], identity, stamps, run)
    hold_to(kept, checkpoint.stream, [path])
    if kept is not None and is_published(kept, [path]):
        notes += _published(path, files, kept, run)
        if not proven:
            discard([path])
        return _made(checkpoint, model, planned, path, notes)

    def content() -> dict[str, Any]:
        return {"fingerprint": identity(), "sources": stamps}

    with journaled_folder(path, kept, content, run, mark=MANIFEST, proven=proven) as (folder, journal):
        with source as hashes:
            notes += _write_graphs(files, folder, options, journal, run, checkpoint.stream, planned.codes)
            sources = hashes.result(run.progress)
        run.progress("completing", 0, 0)
        for name, side in beside.contents.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(side)
        made = _made(checkpoint, model, planned, folder, notes)
        data = set(files)
        written = [
            _file_entry(folder, name, size, hashed=name not in data) for name, size in made.files.items()
        ]
        least = least_of([folder / name for name in planned.graph_files])
        text = _manifest(checkpoint, model, made, options, sources, written, planned, least)
        (folder / MANIFEST).write_text(text, encoding="utf-8", errors="backslashreplace")
        if card is not None and not proven and (texts := card_and_manifest(folder, card, run.announce)):
            for name, side in texts.items():
                (folder / name).write_bytes(side)
            made = replace(made, files={**made.files, README: len(texts[README])})
    return made


def _made(
    checkpoint: Checkpoint, model: Model, planned: Planned, folder: Path, notes: Sequence[Note]
) -> OnnxConversion:
    """What was done; all but the manifest lies in ``folder``, which may not have its name yet."""
    formats: Counter[str] = Counter()
    for weight in planned.weights.values():
        formats[weight.format.name] += weight.tensor.elements
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*"))}
    licence = model.metadata.get("general.license")
    nbytes = sum(weight.nbytes for weight in planned.weights.values())
    return OnnxConversion(
        source=checkpoint.folder,
        arch=model.arch,
        parameters=parameters(model),
        path=planned.folder,
        type=planned.chosen.type,
        bits_per_weight=8 * nbytes / max(1, parameters(model)),
        formats=dict(formats),
        files={name: size for name, size in files.items() if (folder / name).is_file() and name != MANIFEST},
        notes=tuple(dict.fromkeys(notes)),
        license=licence if isinstance(licence, str) else None,
    )


def _identity(files: WeightFiles, options: OnnxOptions, codes: Codes | None) -> dict[str, Any]:
    """The fingerprint of what is to be written."""
    from ..converters.onnx.writer import plan_onnx

    layouts = []
    for data, graphs in files.items():
        plan, protos = plan_onnx(graphs, Path(data).name)
        layouts += [(proto, plan.nbytes) for proto in protos.values()]
    layouts += [] if codes is None else [(codes.identity(), 0)]
    return fingerprint(layouts, allow_nan=options.allow_nan, packages=("onnx",))


def _write_graphs(
    files: WeightFiles,
    folder: Path,
    options: OnnxOptions,
    journal: JournalFolder,
    run: Run,
    stream: Stream | None,
    codes: Codes | None,
) -> list[Note]:
    """Graphs and their weights; returns what there is to say of the weights."""
    from ..converters.onnx.writer import Journaled, write_onnx  # which needs the onnx package

    notes: list[Note] = []
    for number, (data, graphs) in enumerate(files.items()):
        place = folder / data
        place.parent.mkdir(exist_ok=True)
        written = write_onnx(
            graphs,
            place.parent,
            place.name,
            threads=run.threads,
            allow_nan=options.allow_nan,
            journaled=Journaled(journal, f"{number}-", run.announce),
            progress=run.progress,
            stream=stream,
            importance=None if codes is None else codes.by_source,
        )
        notes += written.notes
    return notes


def _published(path: Path, files: WeightFiles, kept: Kept, run: Run) -> list[Note]:
    """What there is to say of the weights of a folder that a run had finished before it was ended."""
    from ..converters.onnx.writer import check_written

    notes: list[Note] = []
    for number, (data, graphs) in enumerate(files.items()):
        place, done = path / data, read_done(kept.folder, f"{number}-")
        written = check_written(
            graphs, place.parent, place.name, done, threads=run.threads, progress=run.progress
        )
        if written is None or not (path / MANIFEST).is_file():
            raise not_as_written(path)
        notes += written.notes
    run.announce("resumed: the files are complete")
    return notes


def _manifest(
    checkpoint: Checkpoint,
    model: Model,
    made: OnnxConversion,
    options: OnnxOptions,
    sources: Sequence[SourceFile],
    written: Sequence[Mapping[str, Any]],
    planned: Planned,
    least: str,
) -> str:
    return manifest_json(
        {
            "output": {
                "type": made.type,
                "bytes": made.bytes,
                "bits_per_weight": round(made.bits_per_weight, 4),
                "files": list(written),
                "least_onnxruntime": least,
            },
            "source": source_part(checkpoint, model, sources),
            "architecture": model.arch,
            "parameters": made.parameters,
            "options": options.to_manifest(),
            "versions": versions(("onnx",)),
            "notes": [asdict(note) for note in made.notes],
            "proof": {"verdict": "not run"},
            "tensors": planned.tensors,
            **({} if planned.codes is None else {"importance": importance_part(planned.codes.importance)}),
        }
    )


def _file_entry(folder: Path, name: str, size: int, *, hashed: bool) -> dict[str, Any]:
    """A file as the manifest has it. Weights get their hash along with the proof, which reads them again."""
    entry: dict[str, Any] = {"name": name, "bytes": size}
    return {**entry, "sha256": file_sha256(folder / name)} if hashed else entry
