"""The whole way from a checkpoint to files: ``convert`` is the diagram of ARCHITECTURE.md in code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..converters.family import AnyFamily, Companion
from ..converters.hashes import SourceHashes, checkpoint_hashes
from ..converters.intake import open_model
from ..converters.manifest import common_part, record_proof
from ..converters.mapping import build, parameters
from ..converters.requests import check_request, refuse_elsewhere
from ..converters.results import Options, Output, Scope, scope_of
from ..converters.targets import (
    CompanionTarget,
    Target,
    choose_companion_targets,
    choose_targets,
    learned_path,
    refuse_idle_keep_wo,
    with_auto,
)
from ..converters.tokenizer import read_tokenizer
from ..core.checkpoint import Checkpoint
from ..core.elsewhere import Elsewhere
from ..core.files import refuse_existing
from ..core.input_files import InputFile
from ..core.leftovers import discard
from ..core.model import Model
from ..core.progress import Progress, silent
from ..hub.object_names import parse_object
from ..quant.importance import Importance
from ..quant.wish import wanted
from ..vocab.ollama import ollama_modelfile
from ..vocab.parity import Parity
from ..vocab.selection import embedding_rows
from .arrivals import announce_traffic, arrived, leaving_nothing, until_the_end
from .finished import tell_converted
from .observer import UNOBSERVED, Observer
from .optional_stages import (
    codes_optimized,
    halves_read_first,
    importance_learned,
    importance_named,
    what_is_expected,
    wishes_fulfilled,
    work_kept,
)
from .plan_files import plan_files, plan_of_target
from .results import Conversion, Run, conversion_of
from .resume import journal_of, refuse_unkept
from .vocab_stage import vocab_of, with_vocab
from .write import write_targets

if TYPE_CHECKING:
    from ..verify.inputs import Expected
    from ..verify.proof import Proof
    from .automatic import Known


def to_gguf(
    source: str | Path,
    output: str | Path | None = None,
    *,
    types: Sequence[str] = ("auto",),
    pure: bool = False,
    tensor_types: Sequence[str] = (),
    output_type: str | None = None,
    embedding_type: str | None = None,
    imatrix: str | Path | None = None,
    calibrate: Sequence[str | Path] = (),
    optimize: bool = False,
    allow_nan: bool = False,
    allow_tokenizer_mismatch: bool = False,
    disabled_adapters: Sequence[str] = (),
    chat_template: str | None = None,
    verify: bool | Scope = "quick",
    keep_wo: bool = False,
    modelfile: bool = False,
    split_max_size: str | None = None,
    drop_extra_tokens: bool = False,
    words_as_text: bool = False,
    rehash: bool = False,
    resume: bool = False,
    scheduler: str | None = None,
    force: bool = False,
    threads: int | None = None,
    progress: Progress = silent,
    announce: Callable[[str], None] = lambda text: None,
    made: Callable[[Sequence[Path]], None] = lambda paths: None,
    observer: Observer = UNOBSERVED,
    stream: bool = False,
    target_size: str | Sequence[str] = (),
    target_kl: float | Sequence[float] = (),
    menu: Sequence[str] = (),
    policy: str | Path | None = None,
) -> Conversion:
    """Convert a checkpoint folder to GGUF files, one for each of ``types``, from one read, and prove them.

    ``output`` is a file where it ends in ``.gguf``, else a folder (default: the current one). With
    ``modelfile`` an Ollama Modelfile stands beside each. ``types`` are llama-quantize's recipes; ``pure``
    leaves out their rules, ``tensor_types`` (``PATTERN=TYPE``) decide before them, ``output_type`` and
    ``embedding_type`` for the output matrix and the token embedding. ``imatrix`` is a file of importance data
    (kconv's or llama.cpp's), ``calibrate`` are texts to learn them from first;
    with ``optimize`` codes are chosen by full statistics, which the first must have and the second leaves
    beside the files. ``keep_wo`` leaves the
    feed-forward output matrices of T5 in the checkpoint's precision. ``drop_extra_tokens`` leaves out tokens
    beyond the embedding's rows, ``words_as_text`` writes words among the special tokens as text. ``verify``:
    ``quick`` (or True) reads some hundred tokens through the checkpoint in fp32 and each file, ``full`` some
    thousand and compares every weight, ``off`` (or False) leaves the proof out; token parity always runs.
    With ``split_max_size`` (``2G``) a model is several files of at most so many bytes of weights. ``rehash``
    reads the source for its SHA-256 even where a receipt of an earlier run has it (core/receipts.py).
    ``resume`` goes on with the same call where it was killed or interrupted (resume.py). With ``stream`` the
    weights of a checkpoint on the Hub are converted as they come, and not kept. With ``target_size``
    (``4.5G``, ``4.25bpw``) or ``target_kl`` (nats), one or several, formats of the ``menu`` are chosen by
    what they cost on the texts of ``calibrate``, or by the ``policy`` file of an earlier choice, which alone
    is taken as it is (choose.py); ``types`` may be none then. ``scheduler`` is the address of a Dask
    scheduler whose workers write the weights (spread.py). ``made`` is called with the finished files, then
    ``announce`` with what the proof will take; ``observer`` is told all that becomes known. Raises KconvError
    of all kinds; no file has its final name unless all are whole. A failed proof raises nothing: see
    ``Conversion.verdict``.
    """
    options = Options(
        tuple(types),
        pure,
        allow_nan,
        allow_tokenizer_mismatch,
        tuple(disabled_adapters),
        chat_template,
        scope_of(verify),
        keep_wo,
        tuple(tensor_types),
        output_type,
        embedding_type,
        None if imatrix is None else str(imatrix),
        tuple(str(path) for path in calibrate),
        split_max_size,
        drop_extra_tokens,
        words_as_text,
        optimize,
        wanted(target_size, target_kl, menu, policy),
    )
    run = Run(
        force,
        threads,
        progress,
        announce,
        made=made,
        rehash=rehash,
        resume=resume,
        streamed=stream,
        observer=observer,
    )
    place = parse_object(output)
    refuse_elsewhere(
        optimize=optimize,
        calibrate=bool(calibrate),
        scheduler=scheduler is not None,
        stream=stream,
        store=place is not None,
    )
    if scheduler is not None:
        from .dask_executor import workers_of

        with workers_of(scheduler, stream=stream, store=place is not None) as executor:
            return convert(source, output, options, replace(run, executor=executor), modelfile=modelfile)
    if place is None:
        return convert(source, output, options, run, modelfile=modelfile)
    from .object_store import convert_to_store  # which converts by what is here

    return convert_to_store(source, place, options, run, modelfile=modelfile)


@leaving_nothing()
def convert(
    source: str | Path | Elsewhere,
    output: str | Path | None,
    options: Options,
    run: Run,
    *,
    modelfile: bool = False,
) -> Conversion:
    """The flow: open, map, choose the vocabulary, choose formats, plan, write, prove."""
    check_request(output, options)
    importance = importance_named(options)
    run.progress("opening", 0, 0)
    look = partial(_refuse_early, output=output, options=options, modelfile=modelfile, run=run)
    checkpoint, family = open_model(arrived(source, look, run))
    run.opened(family)
    announce_traffic(checkpoint.stream, options.verify, run.announce, calibrated=bool(options.calibrate))
    model, companions = build(family, checkpoint), family.companions(checkpoint)
    refuse_idle_keep_wo(model, options)
    choose = partial(_choose_targets, checkpoint, model, companions, output, modelfile=modelfile, run=run)
    targets, beside = choose(options)
    run = replace(run, work=until_the_end(work_kept(targets, checkpoint, options, run)))
    run.observer.opened(checkpoint.folder, model.arch, parameters(model))
    run.observer.noted(model.notes)
    run.progress("tokenizer", 0, 0)
    tokenizer = read_tokenizer(checkpoint, embedding_rows(model) if options.drop_extra_tokens else None)
    model, parity, sampling = with_vocab(model, checkpoint, tokenizer, options, run.progress, run.observer)
    expected = what_is_expected(checkpoint, family, model, tokenizer, options)
    del tokenizer  # its process ends before the weights are read, if nothing is to be proven
    known, note = halves_read_first(expected, model, options, run)
    if note is not None:
        model = replace(model, notes=(*model.notes, note))
        run.observer.noted(model.notes)
        targets, beside = choose(replace(options, types=with_auto(options.types, "f32")))
    importance, known = importance_learned(
        importance, known, expected, model, targets, companions, options, run
    )
    run.progress("planning", 0, 0)
    plan_of = partial(plan_of_target, model, companions, importance)
    targets, importance = wishes_fulfilled(targets, expected, model, importance, options, plan_of, run)
    model, plans = plan_files(model, targets, companions, importance)
    importance, model = codes_optimized(importance, model, plans, options, run)
    run.observer.noted(model.notes)
    targets = [Target.planned(*each) for each in zip(targets, plans, strict=True)]
    tell_converted(checkpoint, targets, options, run)
    outputs, files, model = write_targets(
        model,
        targets,
        plans,
        checkpoint_hashes(checkpoint, rehash=run.rehash),
        partial(common_part, checkpoint, options, parity, importance),
        companions=beside,
        modelfile=partial(ollama_modelfile, template=vocab_of(model).chat_template, sampling=sampling),
        allow_nan=options.allow_nan,
        importance=importance,
        proven=options.verify != "off",
        stream=checkpoint.stream,
        run=run,
    )
    run.made([output.path for output in outputs])
    run.observer.noted(model.notes)
    run.observer.made(outputs, files)
    proofs = _prove(expected, model, outputs, options, parity, importance, known, run)
    discard([path for target in targets for path in target.paths])  # the journal
    return conversion_of(checkpoint, model, outputs, files, parity, proofs)


def _refuse_early(
    checkpoint: Checkpoint,
    family: AnyFamily,
    *,
    output: str | Path | None,
    options: Options,
    modelfile: bool,
    run: Run,
) -> None:
    """Raise what names and shapes tell: an unknown architecture, tensors that miss, files in the way."""
    run.opened(family)
    model, companions = build(family, checkpoint), family.companions(checkpoint)
    _choose_targets(checkpoint, model, companions, output, options, modelfile=modelfile, run=run)


def _choose_targets(
    checkpoint: Checkpoint,
    model: Model,
    companions: Sequence[Companion],
    output: str | Path | None,
    options: Options,
    *,
    modelfile: bool,
    run: Run,
) -> tuple[list[Target], list[CompanionTarget]]:
    """The files to make, and those that lie beside them; nothing that exists is overwritten unasked."""
    force = run.force or run.resume
    targets = choose_targets(checkpoint, model, output, options, modelfile=modelfile, force=force)
    if options.calibrate and run.outlet is None:
        refuse_existing(learned_path(targets, checkpoint, options), force=force)
    tell_converted(checkpoint, targets, options, run)
    if run.resume:
        refuse_unkept(targets, force=run.force)
    run.planned([path for target in targets for path in target.paths])
    return targets, choose_companion_targets(checkpoint, companions, targets, force=run.force)


def _prove(
    expected: Expected | None,
    model: Model,
    outputs: Sequence[Output],
    options: Options,
    parity: Parity,
    importance: Importance | None,
    known: Known,
    run: Run,
) -> Sequence[Proof]:
    """Hold the files against the checkpoint and write what was found into their manifests.

    The files have their names already: a proof that fails, or is interrupted, never costs a conversion.
    """
    if expected is None or options.verify == "off":
        return ()
    from .choose import predicted_of
    from .prove import prove_new_files

    with SourceHashes([InputFile(path) for output in outputs for path in output.paths]) as hashes:
        proofs = prove_new_files(
            replace(expected, model=model),
            [output.path for output in outputs],
            parity,
            scope=options.verify,
            run=run,
            importance=importance,
            known=known,
            keep=journal_of([output.path for output in outputs]),
            predicted=[predicted_of(output) for output in outputs],
        )
        hashed = {file.name: file for file in hashes.result(run.progress)}
    for output, proof in zip(outputs, proofs, strict=True):
        record_proof(output.manifest, proof.to_manifest(), [hashed[path.name] for path in output.paths])
    return proofs
