"""The whole way from a checkpoint to a folder of ONNX files: ``to_onnx`` reads from top to bottom."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ..converters.card import general_metadata, licence_notice
from ..converters.family import AnyFamily
from ..converters.hashes import SourceFile, SourceHashes, checkpoint_hashes
from ..converters.intake import open_model
from ..converters.manifest import manifest_json, record_proof, source_part, versions
from ..converters.mapping import build, parameters
from ..converters.onnx.folder import SideFiles, collect_side_files, parse_layout
from ..converters.onnx.formats import AUTO, OnnxFormats, choose_onnx_formats, parse_type
from ..converters.onnx.graph import OPSET, Graph
from ..converters.onnx.graphs import graphs_of
from ..converters.onnx.options import OnnxOptions
from ..converters.results import Scope, scope_of
from ..converters.targets import FOLDER_MANIFEST as MANIFEST
from ..converters.targets import checkpoint_name
from ..converters.tokenizer import read_tokenizer
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import EnvironmentProblem, UsageError
from ..core.folders import atomic_folder, refuse_filled
from ..core.input_files import InputFile, file_sha256
from ..core.model import Model, Note
from ..core.progress import Progress, silent
from ..core.windows import Window
from ..quant.formats import F16
from ..reference.reading import Reading
from ..runtimes.half_precision import halves_by_source
from ..runtimes.onnx_folder import open_onnx
from ..verify.inputs import Expected, VerifyOptions, cost, proof_windows, read_reference
from ..verify.onnx_artifact import OnnxArtifact, expected_of_folder
from ..verify.proof import Proof
from ..verify.prove import prove
from ..vocab.selection import embedding_rows
from .arrivals import arrived
from .automatic import Known, read_first, too_wide
from .results import OnnxConversion, Run

_INSTALL = "pip install 'kconv[onnx]'"  # also where one is too old; --upgrade could bring another kconv


def to_onnx(
    source: str | Path,
    output: str | Path | None = None,
    *,
    into: str | Path = "",
    type: str = AUTO,
    layout: str = "optimum",
    accuracy_level: int = 4,
    allow_nan: bool = False,
    chat_template: str | None = None,
    drop_extra_tokens: bool = False,
    verify: bool | Scope = "quick",
    rehash: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
    made: Callable[[Sequence[Path]], None] = lambda paths: None,
) -> OnnxConversion:
    """Convert a checkpoint folder to a folder of ONNX files, and prove it.

    ``output`` is the folder (default: ``<name>-<TYPE>-ONNX`` here or in the folder ``into``), which must be
    free or empty; with ``force`` one that kconv has made is replaced. ``type`` is auto, f32, f16, q8_0 or
    q4_0; auto keeps what the checkpoint has, F32 or halves (F32 where halves would overflow: automatic.py).
    ``layout`` is whose names the files have, optimum's or transformers.js's. ``accuracy_level`` is
    onnxruntime's for quantized matrices: 4 rounds the activations to 8 bits, as llama.cpp does; 0 keeps them
    and is far slower.
    ``chat_template``, ``drop_extra_tokens``, ``verify``, ``rehash`` and ``made`` are as of ``to_gguf``.
    Raises KconvError of all kinds; a failed proof raises nothing.
    """
    scope = scope_of(verify)
    wanted = (parse_type(type), parse_layout(layout))
    options = OnnxOptions(*wanted, accuracy_level, allow_nan, chat_template, drop_extra_tokens)
    _check_surroundings(options, proven=scope != "off")
    look = partial(_refuse_early, options=options, output=output, into=Path(into), force=force)
    checkpoint, family = open_model(arrived(source, look, progress))
    model = build(family, checkpoint, "ONNX")
    plan = partial(_plan, checkpoint, family, model, options, output, into=Path(into), force=force)
    planned = plan(options.type)
    tokenizer = read_tokenizer(checkpoint, embedding_rows(model) if drop_extra_tokens else None)
    beside = partial(
        collect_side_files,
        checkpoint,
        tokenizer,
        model,
        options.layout,
        chat_template=chat_template,
        drop_extra_tokens=drop_extra_tokens,
    )
    files = beside(planned.graph_files)
    expected = None if scope == "off" else expected_of_folder(checkpoint, family, model, tokenizer)
    known: Known = {}
    if expected is not None and scope != "off" and (options.type, planned.chosen.type) == (AUTO, "f16"):
        known = read_first(expected, scope, Run(threads=threads, progress=progress, announce=announce))
        halves = [name for name, format in planned.chosen.formats.items() if format == F16]
        note = too_wide(halves_by_source(halves, family, checkpoint), known, out=True)
        if note is not None:
            model, planned = replace(model, notes=(*model.notes, note)), plan("f32")
            files = beside(planned.graph_files)
    del tokenizer, beside  # its process ends before the weights are read, if nothing is to be proven
    hashes = checkpoint_hashes(checkpoint, rehash=rehash)
    with atomic_folder(planned.folder, mark=MANIFEST, force=force) as temporary:
        written = _write(checkpoint, model, planned, files, temporary, options, hashes, threads, progress)
    written = replace(written, path=planned.folder)
    made([planned.folder])
    if expected is None or scope == "off":
        return written
    verify_options = VerifyOptions(threads=threads or available_cores(), progress=progress, announce=announce)
    return replace(written, proof=_prove(expected, planned.folder, scope, verify_options, known))


def onnx_folder_name(checkpoint: Checkpoint, type: str) -> str:
    """``<name>-<TYPE>-ONNX``, for a type that is not auto."""
    return f"{checkpoint_name(checkpoint)}-{type.upper()}-ONNX"


@dataclass(frozen=True)
class _Planned:
    """What is to be written and where; ``graph_files`` are names and how many files of weights each has."""

    chosen: OnnxFormats
    folder: Path
    graphs: Mapping[str, Graph]
    graph_files: Mapping[str, int]


def _refuse_early(
    checkpoint: Checkpoint,
    family: AnyFamily,
    *,
    options: OnnxOptions,
    output: str | Path | None,
    into: Path,
    force: bool,
) -> None:
    """Raise what names and shapes tell: no ONNX for the model, tensors that miss, a folder in the way."""
    model = build(family, checkpoint, "ONNX")
    _plan(checkpoint, family, model, options, output, options.type, into=into, force=force)


def _plan(
    checkpoint: Checkpoint,
    family: AnyFamily,
    model: Model,
    options: OnnxOptions,
    output: str | Path | None,
    type: str,
    *,
    into: Path,
    force: bool,
) -> _Planned:
    """The folder of that type, which must be free."""
    chosen = choose_onnx_formats(family, checkpoint, model, type)
    folder = into / onnx_folder_name(checkpoint, chosen.type) if output is None else Path(output)
    refuse_filled(folder.resolve(), mark=MANIFEST, force=force)
    merged = options.layout.merged
    graphs = graphs_of(family, checkpoint, chosen.formats, options.accuracy_level, merged=merged)
    names = [options.layout.graph_path(name, chosen.type) for name in graphs]
    return _Planned(chosen, folder, graphs, dict.fromkeys(names, 1))


def _check_surroundings(options: OnnxOptions, *, proven: bool) -> None:
    """Refuse early what would end a long conversion."""
    if options.accuracy_level not in range(5):
        raise UsageError(f"accuracy level {options.accuracy_level}, expected 0 to 4")
    try:
        from onnx import __version__ as version
        from onnx.defs import onnx_opset_version
    except ImportError as error:
        raise EnvironmentProblem(
            "the onnx package is not installed; it is needed to write ONNX", hint=_INSTALL
        ) from error
    if onnx_opset_version() < OPSET:
        problem = f"it supports opset {onnx_opset_version()}, expected {OPSET} (onnx 1.19) or newer"
        raise EnvironmentProblem(f"onnx {version} is too old: {problem}", hint=_INSTALL)
    if proven:
        from ..runtimes.onnx_folder import check_onnxruntime

        check_onnxruntime()


def _write(
    checkpoint: Checkpoint,
    model: Model,
    planned: _Planned,
    beside: SideFiles,
    folder: Path,
    options: OnnxOptions,
    source: SourceHashes,
    threads: int | None,
    progress: Progress,
) -> OnnxConversion:
    """Everything but the proof, into an empty folder."""
    chosen, graphs = planned.chosen, planned.graphs
    model = replace(model, metadata=general_metadata(checkpoint))
    notice = licence_notice(model.metadata)
    notes = [*model.notes, *([notice] if notice else []), *chosen.notes, *beside.notes]
    with source as hashes:
        notes += _write_graphs(chosen.type, graphs, folder, options, threads, progress)
        sources = hashes.result(progress)
    for name, content in beside.contents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    weights = {name: weight for graph in graphs.values() for name, weight in graph.weights.items()}
    formats: Counter[str] = Counter()
    for weight in weights.values():
        formats[weight.format.name] += weight.tensor.elements
    files = {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*"))}
    licence = model.metadata.get("general.license")
    made = OnnxConversion(
        source=checkpoint.folder,
        arch=model.arch,
        parameters=parameters(model),
        path=folder,
        type=chosen.type,
        bits_per_weight=8 * sum(weight.nbytes for weight in weights.values()) / max(1, parameters(model)),
        formats=dict(formats),
        files={name: size for name, size in files.items() if (folder / name).is_file()},
        notes=tuple(dict.fromkeys(notes)),
        license=licence if isinstance(licence, str) else None,
    )
    tensors = {name: weight.format.name for name, weight in weights.items()}
    data = {options.layout.data_path(name, chosen.type) for name in graphs}
    written = [_file_entry(folder, name, size, hashed=name not in data) for name, size in made.files.items()]
    _write_manifest(folder / MANIFEST, checkpoint, model, made, options, sources, written, tensors)
    return made


def _write_graphs(
    type: str,
    graphs: Mapping[str, Graph],
    folder: Path,
    options: OnnxOptions,
    threads: int | None,
    progress: Progress,
) -> list[Note]:
    """Those that share a file of weights together; returns what there is to say of the weights."""
    from ..converters.onnx.writer import write_onnx  # which needs the onnx package

    notes: list[Note] = []
    together: dict[str, dict[str, Graph]] = {}
    for name, graph in graphs.items():
        path = Path(options.layout.graph_path(name, type))
        together.setdefault(options.layout.data_path(name, type), {})[path.name] = graph
    for data, named in together.items():
        place = folder / data
        place.parent.mkdir(exist_ok=True)
        written = write_onnx(
            named, place.parent, place.name, threads=threads, allow_nan=options.allow_nan, progress=progress
        )
        notes += written.notes
    return notes


def _write_manifest(
    path: Path,
    checkpoint: Checkpoint,
    model: Model,
    made: OnnxConversion,
    options: OnnxOptions,
    sources: Sequence[SourceFile],
    written: Sequence[Mapping[str, Any]],
    tensors: Mapping[str, str],
) -> None:
    text = manifest_json(
        {
            "output": {
                "type": made.type,
                "bytes": made.bytes,
                "bits_per_weight": round(made.bits_per_weight, 4),
                "files": list(written),
            },
            "source": source_part(checkpoint, model, sources),
            "architecture": model.arch,
            "parameters": made.parameters,
            "options": options.to_manifest(),
            "versions": versions(("onnx",)),
            "notes": [asdict(note) for note in made.notes],
            "proof": {"verdict": "not run"},
            "tensors": dict(tensors),
        }
    )
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def _file_entry(folder: Path, name: str, size: int, *, hashed: bool) -> dict[str, Any]:
    """A file as the manifest has it. Weights get their hash along with the proof, which reads them again."""
    entry: dict[str, Any] = {"name": name, "bytes": size}
    return {**entry, "sha256": file_sha256(folder / name)} if hashed else entry


def _prove(
    expected: Expected, path: Path, scope: Literal["quick", "full"], options: VerifyOptions, known: Known
) -> Proof:
    """Hold the folder against the checkpoint; the files have their names already, whatever comes of it."""
    begun = time.monotonic()
    artifact, windows = OnnxArtifact(open_onnx(path)), proof_windows(expected, scope)
    options.announce(cost(expected, windows, 1, passes=artifact.passes(expected, options)))

    def read(asked: tuple[Window, ...]) -> Reading:
        return known[asked] if asked in known else read_reference(expected, options, asked)

    weights = [InputFile(file) for file in artifact.folder.files]
    with SourceHashes(weights, folder=path) as hashes:
        proof = prove(expected, artifact, windows, options, scope=scope, read=read)
        record_proof(path / MANIFEST, proof.to_manifest(), hashes.result(options.progress))
    return replace(proof, seconds=time.monotonic() - begun)
