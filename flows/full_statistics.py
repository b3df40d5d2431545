"""Full statistics of a checkpoint's texts, and codes chosen by them: ``imatrix --full``, ``--optimize``."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..converters.gguf_plan import FilePlan
from ..core.cores import available_cores
from ..core.errors import InputError, KconvError
from ..core.files import refuse_existing
from ..core.model import Model, Note
from ..core.scratch import scratch_folder
from ..core.tensor import Tensor
from ..core.windows import Window
from ..quant import ggml
from ..quant.formats import Format
from ..quant.full_statistics import Member, SiteSums, texts_of, write_statistics
from ..quant.ggml import Bytes, Floats
from ..quant.imatrix_file import ActivationSums
from ..quant.importance import Importance, read_importance, values_of
from ..quant.optimize import PLAIN, Optimization, optimization, refuse_unfit
from ..reference.full_statistics import FullGathering
from .results import Run


@dataclass
class Collected:
    """What a pass gathers besides the activations, in files in ``folder``.

    ``sites`` and ``members`` are known when the pass is over.
    """

    folder: Path
    sites: Sequence[SiteSums] = ()
    members: dict[Member, int] = field(default_factory=dict)
    gathering: FullGathering | None = None

    def begin(self, windows: Sequence[Window]) -> FullGathering:
        """What observes a pass over these windows."""
        self.gathering = FullGathering(self.folder, [window.tokens for window in windows])
        return self.gathering

    def end(self, places: Mapping[str, Sequence[Member]]) -> None:
        """The pass is over; ``places`` say which matrices a module's input flows into."""
        assert self.gathering is not None
        self.sites, numbers = self.gathering.results()
        self.members = {member: site for name, site in numbers.items() for member in places[name]}

    def write(
        self, path: Path, activations: ActivationSums, *, arch: str, texts: Mapping[str, str], force: bool
    ) -> None:
        """Write the file. Raises OutputExists and EnvironmentProblem."""
        digest = digest_of(texts)
        write_statistics(
            path, activations, self.sites, self.members, arch=arch, texts_sha256=digest, force=force
        )


def digest_of(texts: Mapping[str, str]) -> str:
    """SHA-256 of texts by their names."""
    return hashlib.sha256("\0".join(texts.values()).encode()).hexdigest()


@contextlib.contextmanager
def collecting(beside: Path) -> Iterator[Collected]:
    """A place to gather in, in the folder of the file it will be."""
    folder = beside.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder("statistics", folder) as scratch:
        yield Collected(scratch)


def statistics_path(output: Path, name: str) -> Path:
    """Where a conversion of a checkpoint of that ``name`` to ``output`` keeps the statistics it learns."""
    return output.parent / f"{name}-statistics.gguf"


def kept_statistics(path: Path, texts: Mapping[str, str], run: Run) -> Importance | None:
    """Those an ended run has learned of the same texts, if this run goes on.

    Raises OutputExists where the file is in the way.
    """
    if run.resume and path.is_file():
        with contextlib.suppress(KconvError):
            if texts_of(path) == digest_of(texts):
                run.announce(f"resumed: the statistics have been computed already ({path})")
                return read_importance(path)
    refuse_existing(path, force=run.force or run.resume)
    return None


def to_be_optimized(importance: Importance) -> Importance:
    """The same, marked: files say that their codes are chosen, though not yet how.

    Raises InputError where there are no correlations to choose by.
    """
    if importance.full is None:
        raise InputError(
            f"{importance.where} does not contain full statistics, which --optimize needs",
            hint="make them with kconv imatrix CHECKPOINT --full --text FILE, or pass --calibrate FILE",
        )
    return replace(importance, optimization=Optimization(importance.full, {}))


def optimized(
    importance: Importance, model: Model, plans: Sequence[FilePlan], run: Run
) -> tuple[Importance, Model]:
    """The importance with what is needed to choose codes for all files; the model with a note on it.

    Raises InputError for statistics of another model, EnvironmentProblem where kernels are not built.
    """
    assert importance.full is not None
    refuse_unfit(importance.full, model.tensors)
    wanted = [
        (tensor, [plan.formats[index] for plan in plans])
        for index, tensor in enumerate(model.tensors)
        if len(tensor.shape) > 1
    ]
    run.announce(
        f"optimize: finding out how far the statistics of {importance.full.path.name} can be trusted"
    )

    def encode(tensor: Tensor, format: Format, rows: Floats, matrix: int) -> Bytes:
        out = np.empty(len(rows) * format.row_bytes(rows.shape[1]), np.uint8)
        values, columns = values_of(tensor, importance), rows.shape[1]
        weights = None if values is None else values.reshape(-1, columns)[matrix].copy()
        ggml.encode(format, rows, out, weights, finite=True)
        return out

    found = optimization(
        importance.full, wanted, encode, threads=run.threads or available_cores(), progress=run.progress
    )
    return replace(importance, optimization=found), replace(model, notes=(*model.notes, _note(found)))


def _note(found: Optimization) -> Note:
    chosen = [trial.ratio for trial in found.trials.values() if trial.strength != PLAIN]
    if not chosen:
        return Note(
            "not-optimized",
            "no matrix gains by error feedback on held-out text: all are encoded as with an imatrix alone "
            "(give more calibration text)",
            warning=True,
        )
    mean = sum(chosen) / len(chosen)
    return Note(
        "optimized",
        f"codes of {len(chosen)} of {len(found.trials)} matrices were chosen by error feedback, which leaves "
        f"{mean:.0%} of the output error on held-out text; the others are encoded as with an imatrix alone",
    )
