"""``to-onnx --optimize``: codes of q4_0 and q8_0 chosen as for a GGUF, whose blocks these are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..converters.family import AnyFamily
from ..converters.mapping import sources_of
from ..converters.onnx.sources import by_source
from ..core.checkpoint import Checkpoint
from ..core.errors import UsageError
from ..core.model import Model, Note
from ..quant.formats import Format
from ..quant.importance import SPARED, Importance, read_importance
from ..quant.onnx_packing import PACKED
from .full_statistics import note_of, to_be_optimized, with_codes
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


def statistics_of(imatrix: str | Path | None, *, optimize: bool) -> str | None:
    """The file that codes are to be chosen by. Raises UsageError for one without the other."""
    if (imatrix is None) == optimize:
        raise UsageError(
            "--imatrix and --optimize go together here: codes are chosen by a file of full statistics",
            hint="kconv imatrix CHECKPOINT --full --text FILE makes it; then pass --imatrix FILE --optimize",
        )
    return None if imatrix is None else str(imatrix)


def read_statistics(path: str | None, type: str) -> Importance | None:
    """The statistics in that file. Raises InputError where it has none, UsageError for other types."""
    if path is None:
        return None
    if type not in (format.name for format in PACKED):
        raise UsageError(
            f"--optimize chooses codes, and {type} has none",
            hint="ask for -q q4_0 or -q q8_0, or leave it out",
        )
    return to_be_optimized(read_importance(path), optimize=True)


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
