"""``to-onnx --optimize``: codes of q4_0 and q8_0 chosen as for a GGUF, whose blocks these are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of
from ..converters.onnx.options import OnnxOptions
from ..converters.onnx.sources import by_source
from ..converters.requests import refuse_elsewhere
from ..converters.results import Scope
from ..converters.targets import statistics_beside
from ..core.checkpoint import Checkpoint
from ..core.errors import UsageError
from ..core.model import Model, Note
from ..quant.formats import Format
from ..quant.importance import SPARED, Importance, read_importance
from ..quant.onnx_packing import PACKED
from ..verify.inputs import Expected
from .automatic import Known
from .full_statistics import note_of, to_be_optimized, with_codes
from .kept_work import work_of
from .results import Run


@dataclass(frozen=True)
class Codes:
    """How codes are chosen: by GGUF name, as manifests say it, and by the checkpoint's; a note on it."""

    importance: Importance
    by_source: Importance
    note: Note

    def identity(self) -> bytes:
        """What decides them, for a run that goes on."""
        found = self.importance.optimization
        said = [self.importance.sha256, {} if found is None else found.to_manifest()]
        return json.dumps(said, sort_keys=True).encode()


def chosen_by(
    imatrix: str | Path | None, calibrate: Sequence[str | Path], *, optimize: bool
) -> dict[str, Any]:
    """What codes are to be chosen by, as ``OnnxOptions`` have it.

    Raises UsageError for data that nothing would use, for none where they are needed, and for both kinds.
    """
    if imatrix is not None and calibrate:
        raise UsageError("--imatrix and --calibrate cannot be combined", hint="leave one of them out")
    if (imatrix is None and not calibrate) == optimize:
        raise UsageError(
            "--optimize and --calibrate or --imatrix go together here: codes are chosen by full statistics",
            hint="pass --calibrate TEXT --optimize, or --imatrix FILE --optimize with what kconv imatrix "
            "CHECKPOINT --full --text TEXT has made",
        )
    statistics = None if imatrix is None else str(imatrix)
    return {"statistics": statistics, "calibrate": tuple(str(path) for path in calibrate)}


def read_statistics(options: OnnxOptions, *, stream: bool) -> Importance | None:
    """The statistics that are in a file. Raises InputError where it has none, UsageError for other types.

    Also where they are to be learned of a checkpoint that is not on this machine.
    """
    if options.statistics is None and not options.calibrate:
        return None
    if options.type not in (format.name for format in PACKED):
        raise UsageError(
            f"--optimize chooses codes, and {options.type} has none",
            hint="ask for -q q4_0 or -q q8_0, or leave it out",
        )
    if options.statistics is None:
        refuse_elsewhere(optimize=True, calibrate=True, scheduler=False, stream=stream, store=False)
        return None
    return to_be_optimized(read_importance(options.statistics), optimize=True)


def work_kept(
    folder: Path, checkpoint: Checkpoint, options: OnnxOptions, run: Run
) -> AbstractContextManager[Path | None]:
    """Where what is measured is kept for a run that goes on; None where nothing is."""
    if options.statistics is None and not options.calibrate:
        return nullcontext()
    return work_of(folder.resolve(), checkpoint, options.to_manifest(), run)


def statistics_learned(
    expected: Expected, folder: Path, options: OnnxOptions, scope: Scope, run: Run
) -> tuple[Importance, Known]:
    """Full statistics of the texts, kept beside the ``folder`` to be, and what was read for the proof.

    Raises as ``kept_or_learned`` does, and InputError for texts the folder will be proven on.
    """
    from .calibrate import kept_or_learned, refuse_text_of_the_proof  # and all that chooses formats

    refuse_text_of_the_proof(expected, options.calibrate, scope, run)
    keep = statistics_beside(folder.resolve(), expected.checkpoint)
    found = kept_or_learned(expected, options.calibrate, keep, [folder], scope=scope, full=True, run=run)
    return to_be_optimized(found.importance, optimize=True), found.known


def codes_of(
    importance: Importance | None,
    model: Model,
    family: AnyFamily,
    checkpoint: Checkpoint,
    formats: Mapping[str, Format],
    run: Run,
) -> Codes | None:
    """Find out how codes are chosen in these ``formats``, by the checkpoint's names.

    Raises InputError for statistics of another model, EnvironmentProblem where kernels are not built.
    """
    if importance is None:
        return None
    sources = sources_of(family, checkpoint)
    wanted = [
        (tensor, [format])
        for tensor in model.tensors
        if len(tensor.shape) > 1 and tensor.name not in SPARED and sources.get(tensor.name)
        for format in [formats[sources[tensor.name][0]]]
        if format in PACKED
    ]
    importance = with_codes(importance, model, wanted, run)
    assert importance.optimization is not None
    found = by_source(importance, family, checkpoint, model)
    return Codes(importance, found, note_of(importance.optimization))
