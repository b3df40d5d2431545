"""The whole way from a checkpoint to a folder of ONNX files: ``to_onnx`` reads from top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from ..converters.family import AnyFamily
from ..converters.hashes import SourceHashes
from ..converters.intake import open_model
from ..converters.manifest import record_proof
from ..converters.mapping import build, parameters
from ..converters.onnx.folder import SideFiles, collect_side_files, parse_layout
from ..converters.onnx.formats import AUTO, choose_onnx_formats, parse_type
from ..converters.onnx.genai import with_genai
from ..converters.onnx.graphs import graphs_of
from ..converters.onnx.options import OnnxOptions, flavour_for, parse_activations
from ..converters.onnx.page import DTYPES, with_page
from ..converters.results import Scope, scope_of
from ..converters.targets import FOLDER_MANIFEST as MANIFEST
from ..converters.targets import checkpoint_name, statistics_beside
from ..converters.tokenizer import read_tokenizer
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.elsewhere import Elsewhere
from ..core.errors import EnvironmentProblem, UsageError
from ..core.files import refuse_existing
from ..core.folders import refuse_filled
from ..core.input_files import InputFile
from ..core.kept import kept_for
from ..core.leftovers import discard
from ..core.model import Model
from ..core.progress import Progress, silent
from ..core.windows import Window
from ..quant.formats import F16
from ..reference.reading import Reading
from ..runtimes.half_precision import halves_by_source
from ..runtimes.onnx_folder import open_onnx
from ..verify.inputs import Expected, VerifyOptions, cost, proof_windows
from ..verify.onnx_artifact import OnnxArtifact, expected_of_folder
from ..verify.proof import Proof
from ..verify.prove import prove
from ..vocab.selection import embedding_rows
from ..vocab.tokenizer import Source
from .arrivals import announce_traffic, arrived, leaving_nothing, until_the_end
from .automatic import Known, read_first
from .finished import Made, of_checkpoint, tell_made
from .folder_card import Card, maker_of, with_card
from .observer import UNOBSERVED, Observer
from .onnx_codes import chosen_by, codes_of, read_statistics, statistics_learned, work_kept
from .prove import read_and_keep
from .results import OnnxConversion, Run
from .resume import journal_of
from .write_onnx import Planned, write_folder

_INSTALL = "pip install 'kconv[onnx]'"  # also where one is too old; --upgrade could bring another kconv


@leaving_nothing()
def to_onnx(
    source: str | Path | Elsewhere,
    output: str | Path | None = None,
    *,
    into: str | Path = "",
    type: str = AUTO,
    layout: str = "optimum",
    flavour: str | None = None,
    activations: str = "f32",
    accuracy_level: int = 4,
    allow_nan: bool = False,
    chat_template: str | None = None,
    drop_extra_tokens: bool = False,
    verify: bool | Scope = "quick",
    rehash: bool = False,
    resume: bool = False,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
    made: Callable[[Sequence[Path]], None] = lambda paths: None,
    observer: Observer = UNOBSERVED,
    stream: bool = False,
    imatrix: str | Path | None = None,
    calibrate: Sequence[str | Path] = (),
    optimize: bool = False,
    card: Card = True,
) -> OnnxConversion:
    """Convert a checkpoint folder to a folder of ONNX files, and prove it.

    ``output`` is the folder (default: ``<name>-<TYPE>-ONNX`` here or in the folder ``into``), which must be
    free or empty; with ``force`` one that kconv has made is replaced. ``type`` is auto, f32, f16, q8_0 or
    q4_0; auto keeps what the checkpoint has, F32 or halves (F32 where halves would overflow: automatic.py).
    ``layout`` is whose names the files have, optimum's or transformers.js's. ``flavour`` is whose operators
    the graphs have, standard (ONNX's of opset 23) or contrib (onnxruntime's own); None is contrib for
    transformers.js and standard otherwise. ``accuracy_level`` is onnxruntime's for quantized matrices: 4
    rounds the activations to 8 bits, as llama.cpp does; 0 keeps them and is far slower. ``activations`` is
    the type of what flows and of the cache: f32, or f16, for GPUs, in decoders of the types f16, q8_0 and
    q4_0 (auto is f16 then).
    ``chat_template``, ``drop_extra_tokens``, ``verify``, ``rehash``, ``resume``, ``made``, ``observer``
    and ``stream`` are as of ``to_gguf``. With ``optimize`` the codes of q4_0 and q8_0 are chosen by the full
    statistics in the file ``imatrix``, or learned first from the texts ``calibrate`` and left beside the
    folder: the blocks are those of such a GGUF. ``card`` makes the README.md of
    the finished folder, which becomes one of its files: True as ``kconv card`` does, False none. Raises
    KconvError of all kinds; a failed proof raises nothing.
    """
    scope, write_card = scope_of(verify), maker_of(card)
    wanted = (parse_type(type), parse_layout(layout))
    options = OnnxOptions(
        *wanted,
        accuracy_level,
        allow_nan,
        chat_template,
        drop_extra_tokens,
        flavour_for(wanted[1], flavour),
        parse_activations(activations),
    )
    if imatrix is not None or calibrate or optimize:
        options = replace(options, **chosen_by(imatrix, calibrate, optimize=optimize))
    importance = read_statistics(options, stream=stream)
    _check_surroundings(options, proven=scope != "off")
    run = Run(force, threads, progress, announce, made=made, rehash=rehash, resume=resume, streamed=stream)
    run = replace(run, observer=observer)
    progress("opening", 0, 0)
    look = partial(_refuse_early, options=options, output=output, into=Path(into), scope=scope, run=run)
    checkpoint, family = open_model(arrived(source, look, run))
    announce_traffic(checkpoint.stream, scope, announce)
    model = build(family, checkpoint, "ONNX")
    plan = partial(_plan, checkpoint, family, model, options, output, into=Path(into), scope=scope, run=run)
    planned = plan(options.type)
    run = replace(run, work=until_the_end(work_kept(planned.folder, checkpoint, options, run)))
    observer.opened(checkpoint.folder, model.arch, parameters(model))
    observer.noted(model.notes)
    progress("tokenizer", 0, 0)
    tokenizer = read_tokenizer(checkpoint, embedding_rows(model) if drop_extra_tokens else None)
    beside = partial(_side_files, checkpoint, tokenizer, model, options)
    files = beside(planned)
    expected = None if scope == "off" else expected_of_folder(checkpoint, family, model, tokenizer)
    known: Known = {}
    if expected is not None and (options.type, planned.chosen.name) == (AUTO, "f16"):
        halves = [name for name, format in planned.chosen.formats.items() if format == F16]
        modules = halves_by_source(halves, family, checkpoint)
        known, note = read_first(expected, scope, modules, out=True, run=run)
        if note is not None:
            model, planned = replace(model, notes=(*model.notes, note)), plan("f32")
            observer.noted(model.notes)
            files = beside(planned)
    if options.calibrate:
        reader = expected or expected_of_folder(checkpoint, family, model, tokenizer)
        importance, learned = statistics_learned(reader, planned.folder, options, scope, run)
        known = {**known, **learned}
        del reader
    codes = codes_of(importance, model, family, checkpoint, planned.chosen.formats, run)
    if codes is not None:
        model, planned = replace(model, notes=(*model.notes, codes.note)), replace(planned, codes=codes)
    del tokenizer, beside  # its process ends before the weights are read, if nothing is to be proven
    written = write_folder(
        checkpoint, model, planned, files, options, run, proven=scope != "off", card=write_card
    )
    made([planned.folder])
    observer.noted(written.notes)
    observer.made_folder(written.path, written.files)
    if expected is None or scope == "off":
        return written
    verify_options = VerifyOptions(
        threads=threads or available_cores(), progress=progress, announce=announce, part=observer.part
    )
    observer.proving(planned.folder, written.type, 1, 1)
    proof = _prove(expected, planned.folder, scope, verify_options, known)
    observer.proven(proof)
    discard([planned.folder.resolve()])  # the journal
    return with_card(replace(written, proof=proof), write_card, announce)


def onnx_folder_name(checkpoint: Checkpoint, type: str) -> str:
    """``<name>-<TYPE>-ONNX``, for a type (``OnnxFormats.name``) that is not auto."""
    return f"{checkpoint_name(checkpoint)}-{type.upper()}-ONNX"


def _refuse_early(
    checkpoint: Checkpoint,
    family: AnyFamily,
    *,
    options: OnnxOptions,
    output: str | Path | None,
    into: Path,
    scope: Scope,
    run: Run,
) -> None:
    """Raise what names and shapes tell: no ONNX for the model, tensors that miss, a folder in the way."""
    model = build(family, checkpoint, "ONNX")
    _plan(checkpoint, family, model, options, output, options.type, into=into, scope=scope, run=run)


def _plan(
    checkpoint: Checkpoint,
    family: AnyFamily,
    model: Model,
    options: OnnxOptions,
    output: str | Path | None,
    type: str,
    *,
    into: Path,
    scope: Scope,
    run: Run,
) -> Planned:
    """The folder of that type, which must be free."""
    chosen = choose_onnx_formats(family, checkpoint, model, type, halves=options.halves)
    folder = into / onnx_folder_name(checkpoint, chosen.name) if output is None else Path(output)
    if run.resume and not run.force and not kept_for([folder.resolve()]):
        wanted = of_checkpoint(checkpoint, options.to_manifest(), scope, packages=("onnx",))
        tell_made([Made(folder, chosen.type, ())], wanted)
    if options.calibrate:
        refuse_existing(statistics_beside(folder.resolve(), checkpoint), force=run.force or run.resume)
    if not run.resume or not kept_for([folder.resolve()]):
        refuse_filled(folder.resolve(), mark=MANIFEST, force=run.force)
    graphs = graphs_of(
        family,
        checkpoint,
        chosen.formats,
        options.accuracy_level,
        merged=options.layout.merged,
        flavour=options.flavour,
        halves=options.halves,
    )
    names = [options.layout.graph_path(name, chosen.name) for name in graphs]
    return Planned(chosen, folder, graphs, dict.fromkeys(names, 1))


def _side_files(
    checkpoint: Checkpoint, tokenizer: Source, model: Model, options: OnnxOptions, planned: Planned
) -> SideFiles:
    """What the folder contains besides graphs and weights."""
    files = collect_side_files(
        checkpoint,
        tokenizer,
        model,
        options.layout,
        planned.graph_files,
        options.chat_template,
        drop_extra_tokens=options.drop_extra_tokens,
        halves=DTYPES[planned.chosen.name] if options.halves else None,
    )
    files = with_genai(files, model, planned.graphs, options.layout)
    name = checkpoint_name(checkpoint)
    return with_page(files, planned.graphs, options.layout, planned.chosen.name, name)


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
    if onnx_opset_version() < (opset := options.flavour.opset):
        problem = f"it supports opset {onnx_opset_version()}, expected {opset} or newer"
        raise EnvironmentProblem(f"onnx {version} is too old: {problem}", hint=_INSTALL)
    if proven:
        from ..runtimes.onnx_folder import check_onnxruntime

        check_onnxruntime()


def _prove(
    expected: Expected, path: Path, scope: Literal["quick", "full"], options: VerifyOptions, known: Known
) -> Proof:
    """Hold the folder against the checkpoint; the files have their names already, whatever comes of it."""
    begun = time.monotonic()
    artifact, windows = OnnxArtifact(open_onnx(path)), proof_windows(expected, scope)
    options.announce(cost(expected, windows, 1, passes=artifact.passes(expected, options)))

    def read(asked: tuple[Window, ...]) -> Reading:
        if asked in known:
            return known[asked]
        return read_and_keep(journal_of([path.resolve()]), expected, options, asked)

    weights = [InputFile(file) for file in artifact.folder.files]
    with SourceHashes(weights, folder=path) as hashes:
        proof = prove(expected, artifact, windows, options, scope=scope, read=read)
        record_proof(path / MANIFEST, proof.to_manifest(), hashes.result(options.progress))
    return replace(proof, seconds=time.monotonic() - begun)
