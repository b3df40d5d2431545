"""Full statistics of a checkpoint's texts, and codes chosen by them: ``imatrix --full``, ``--optimize``."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..converters.gguf_plan import FilePlan
from ..converters.results import Options
from ..core.cores import available_cores
from ..core.errors import InputError, KconvError
from ..core.files import refuse_existing
from ..core.model import Model, Note
from ..core.scratch import scratch_folder
from ..core.tensor import Tensor
from ..core.windows import Window
from ..quant import ggml
from ..quant.code_layouts import layout_of
from ..quant.feedback import DESCENTS
from ..quant.formats import Format
from ..quant.full_statistics import HALVES, Member, SiteSums, texts_of, write_statistics
from ..quant.ggml import Bytes, Floats
from ..quant.imatrix_file import ActivationSums
from ..quant.importance import SPARED, Importance, read_importance, values_of
from ..quant.optimize import PLAIN, Key, Optimization, Trial, refuse_unfit
from ..quant.strengths import SAMPLE, STRENGTHS, WIDEST, optimization
from ..reference.full_statistics import FullGathering
from ..reference.saved_pass import Learned, SavedPass, SparePass
from ..reference.statistics import Squares
from ..verify.cost import in_words, multiplying_speed
from .kept_strengths import keeping_strengths, kept_strengths
from .kept_work import PASS, held_work
from .results import Run


@dataclass
class Collected:
    """What a pass gathers besides the activations, in files in ``folder``; nothing if it is not ``full``.

    ``sites`` and ``members`` are known when the pass is over. A pass that ``stays`` is saved in the folder
    behind each layer, and goes on from there.
    """

    folder: Path
    stays: bool = False
    full: bool = True
    sites: Sequence[SiteSums] = ()
    members: dict[Member, int] = field(default_factory=dict)
    gathering: FullGathering | None = None

    def begin(self, windows: Sequence[Window]) -> FullGathering | None:
        """What observes a pass over these windows."""
        if self.full:
            self.gathering = FullGathering(self.folder, [window.tokens for window in windows])
        return self.gathering

    def saving(
        self, asked: Mapping[str, Any], squares: dict[str, Squares], told: Callable[[str], None]
    ) -> SavedPass | None:
        """Where the pass that began is saved, if it is; ``squares`` get what an earlier one has learned.

        ``asked`` says what it depends on: one that was ended goes on only if that is the same. ``told`` is
        told where one that is not full finds no room, and goes on unsaved.
        """
        gathering = self.gathering
        if not self.stays:
            return None

        def learned() -> Learned:
            content, arrays = ({}, {}) if gathering is None else gathering.learned()
            counts = {name: each.count for name, each in squares.items()}
            sums = {f"sums/{name}": each.sums for name, each in squares.items()}
            return {"full": content, "counts": counts}, {**arrays, **sums}

        saved = (
            SavedPass(self.folder, asked, learned)
            if self.full
            else SparePass(self.folder, {**asked, "full": False}, told, learned)
        )
        if saved.before is None:
            for path in self.folder.iterdir():
                path.unlink()
            return saved
        content, arrays = saved.before
        if gathering is not None:
            gathering.resume((content["full"], arrays))
        for name, count in content["counts"].items():
            squares[name] = Squares(arrays[f"sums/{name}"], int(count))
        return saved

    def cost(self, model: Model, tokens: int) -> str:
        """What gathering takes, before it begins."""
        squares = [columns**2 for columns in distinct_inputs(model)]
        seconds = 1.2 * tokens * sum(squares) / multiplying_speed()  # a half, and a tenth on the diagonal
        size = f"{max(1, 2 * sum(squares) >> 20):,} MiB"
        return f"statistics: how inputs correlate takes about {in_words(seconds)} more, the file about {size}"

    def end(self, places: Mapping[str, Sequence[Member]]) -> None:
        """The pass is over; ``places`` say which matrices a module's input flows into."""
        if self.gathering is None:
            return
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


_SAME_INPUT = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))


def distinct_inputs(model: Model) -> list[int]:
    """The columns of each input, of those that matrices share once, by names: for estimates."""
    found: dict[tuple[str, int], int] = {}
    for tensor in model.tensors:
        if len(tensor.shape) < 2 or tensor.name in SPARED:
            continue
        layer, _, kind = tensor.name.removesuffix(".weight").rpartition(".")
        alike = next((names[0] for names in _SAME_INPUT if kind.startswith(names)), kind)
        for matrix in range(tensor.shape[0] if len(tensor.shape) == 3 else 1):
            found[f"{layer}.{alike}", matrix] = tensor.shape[-1]
    return list(found.values())


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


@contextlib.contextmanager
def resumable(path: Path, *, resume: bool) -> Iterator[Collected]:
    """A place to gather in, ``PATH.gathering``, that stays where the work is interrupted or killed.

    Without ``resume`` what lies there is discarded. Raises EnvironmentProblem where another run is at work.
    """
    with held_work(path, resume=resume) as folder:
        yield Collected(folder, stays=True)


@contextlib.contextmanager
def within(work: Path, *, full: bool) -> Iterator[Collected]:
    """A place to gather in, in the folder a conversion keeps its ``work`` in; gone when all is gathered."""
    folder = work / PASS
    folder.mkdir(exist_ok=True)
    yield Collected(folder, stays=True, full=full)
    shutil.rmtree(folder, ignore_errors=True)


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


def given_importance(options: Options) -> Importance | None:
    """The importance data that were named, to choose codes by where that is asked for; None: none were.

    Raises InputError for files that cannot be read or do not do.
    """
    found = None if options.imatrix is None else read_importance(options.imatrix)
    return None if found is None else to_be_optimized(found, optimize=options.optimize)


def to_be_optimized(importance: Importance, *, optimize: bool) -> Importance:
    """The same; where codes are to be chosen, marked: files say that they are, though not yet how.

    Raises InputError where there are no correlations to choose by.
    """
    if not optimize:
        return importance
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
    wanted = [
        (tensor, [plan.formats[index] for plan in plans])
        for index, tensor in enumerate(model.tensors)
        if len(tensor.shape) > 1 and tensor.name not in SPARED
    ]
    importance = with_codes(importance, model, wanted, run)
    assert importance.optimization is not None
    keys = {(tensor.name, format.name) for tensor, formats in wanted for format in formats}
    of_files = {
        key: trial for key, trial in importance.optimization.trials.items() if (key[0], key[2]) in keys
    }
    found = replace(importance.optimization, trials=of_files)
    return replace(importance, optimization=found), replace(model, notes=(*model.notes, note_of(found)))


def with_codes(
    importance: Importance, model: Model, wanted: Sequence[tuple[Tensor, Sequence[Format]]], run: Run
) -> Importance:
    """The importance with what is needed to choose the codes of these tensors in these formats.

    What is known already is not found out again. Raises as ``optimized`` does.
    """
    assert importance.full is not None
    refuse_unfit(importance.full, model.tensors)
    statistics = importance.full
    known = {} if importance.optimization is None else dict(importance.optimization.trials)
    kept = None if importance.optimization is None else importance.optimization.kept
    before = kept_strengths(run.work, statistics)
    if len(before.keys() - known.keys()):
        run.announce(f"resumed: how the codes of {len(before)} matrices are chosen is known already")
    known = before | known
    wanted = [
        (tensor, [format for format in formats if not _is_known(known, tensor, format)])
        for tensor, formats in wanted
    ]
    if known and not any(formats for _, formats in wanted):
        return replace(importance, optimization=Optimization(statistics, known, kept))
    threads = run.threads or available_cores()
    about = in_words(_products(model, wanted) / (_PRODUCTS * threads))
    run.announce(f"optimize: codes are chosen by {statistics.path.name}, about {about}")

    def encode(tensor: Tensor, format: Format, rows: Floats, matrix: int) -> Bytes:
        out = np.empty(len(rows) * format.row_bytes(rows.shape[1]), np.uint8)
        values, columns = values_of(tensor, importance), rows.shape[1]
        weights = None if values is None else values.reshape(-1, columns)[matrix].copy()
        ggml.encode(format, rows, out, weights, finite=True)
        return out

    told = keeping_strengths(run.work, statistics)
    found = optimization(statistics, wanted, encode, threads=threads, progress=run.progress, told=told)
    return replace(importance, optimization=replace(found, trials={**known, **found.trials}, kept=kept))


def _is_known(known: Mapping[Key, Trial], tensor: Tensor, format: Format) -> bool:
    """Whether it has been found out for every matrix of a tensor."""
    matrices = tensor.shape[0] if len(tensor.shape) == 3 else 1
    return all((tensor.name, matrix, format.name) in known for matrix in range(matrices))


# Products a second and thread, of a core of a server.
_PRODUCTS = 22e9


def _products(model: Model, wanted: Sequence[tuple[Tensor, Sequence[Format]]]) -> float:
    """How many products choosing takes: to factor, to try strengths, and to choose."""
    total = 0.0
    for columns in distinct_inputs(model):
        total += columns**3 / 6 + len(STRENGTHS) * HALVES * min(columns, WIDEST) ** 3 / 6
    each = 1 + DESCENTS - 0.5  # products for each weight and column
    for tensor, formats in wanted:
        chosen = [format for format in dict.fromkeys(formats) if layout_of(format) is not None]
        matrices, columns = tensor.shape[0] if len(tensor.shape) == 3 else 1, tensor.shape[-1]
        trials = matrices * SAMPLE * len(STRENGTHS) * HALVES * (each + 1) * min(columns, WIDEST) ** 2
        total += len(chosen) * (tensor.elements * each * columns + trials)
    return total


def note_of(found: Optimization) -> Note:
    """What users are told of it."""
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
