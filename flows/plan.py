"""What a conversion would write, before any weight is read: sizes to the byte, fallbacks, memory, disk.

The vocabulary is chosen as in a conversion, in llama.cpp, since it is part of the file and decides which of
several candidates goes in; of the weights only names and shapes are looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..converters.family import Companion
from ..converters.gguf_plan import FilePlan, plan_companion
from ..converters.mapping import build, parameters
from ..converters.memory import conversion_memory, proof_memory
from ..converters.requests import check_request
from ..converters.results import Options
from ..converters.targets import Target, checkpoint_name, choose_targets, learned_path
from ..converters.tokenizer import read_tokenizer
from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import InputError, UsageError
from ..core.files import explained, nearest_existing
from ..core.gguf_pairs import encode_pairs
from ..core.model import Model, Note
from ..core.progress import Progress, silent
from ..core.vocabulary import gguf_keys
from ..quant.formats import F32, FORMATS
from ..quant.importance import Importance, importance_to_be, read_importance
from ..quant.policy import POLICIES, choose_formats
from ..quant.policy_file import Choice
from ..vocab.parity import Parity
from ..vocab.selection import embedding_rows
from .arrivals import opened_headers
from .choose import with_choices
from .observer import UNOBSERVED, Observer
from .plan_files import plan_files, plan_of_target
from .recommendation import RunMemory, run_memory
from .results import Run
from .vocab_stage import vocab_of, with_vocab


@dataclass(frozen=True)
class PlannedType:
    """The file of one type. ``bytes`` is its size, ``formats`` the number of weights in each format.

    Of a model in several files, ``parts``, ``path`` is the first and ``bytes`` the size of all.

    ``fallbacks`` are (tensor, format of the recipe, format it gets since its rows are no whole blocks),
    ``fallback_weights`` how many weights these hold.
    ``needs_imatrix``: llama.cpp makes the type only with importance data, and none was named; the plan
    assumes there is some, whose names would add a few bytes. ``lossless``: every weight stays as it
    is. ``choice`` says how formats were chosen that no recipe has.
    """

    type: str
    path: Path
    parts: int
    bytes: int
    bits_per_weight: float
    formats: tuple[tuple[str, int], ...]
    fallbacks: tuple[tuple[str, str, str], ...]
    fallback_weights: int
    needs_imatrix: bool
    lossless: bool
    notes: tuple[Note, ...]
    choice: Choice | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "type": self.type,
            "path": str(self.path),
            "parts": self.parts,
            "bytes": self.bytes,
            "bits_per_weight": round(self.bits_per_weight, 4),
            "formats": dict(self.formats),
            "fallbacks": [
                {"tensor": tensor, "instead_of": wanted, "format": given}
                for tensor, wanted, given in self.fallbacks
            ],
            "fallback_weights": self.fallback_weights,
            "needs_imatrix": self.needs_imatrix,
            "lossless": self.lossless,
            "predicted_kl": None if self.choice is None else self.choice.predicted,
            "notes": [asdict(note) for note in self.notes],
        }


@dataclass(frozen=True)
class RefusedType:
    """A type llama.cpp cannot make of this model, and why."""

    type: str
    reason: str


@dataclass(frozen=True)
class PlannedCompanion:
    """A second file all types need beside them, written once."""

    path: Path
    bytes: int


@dataclass(frozen=True)
class Plan:
    """Every file a conversion could write; ``refused`` are types it could not.

    ``free`` are the bytes free where the files would go (``folder``), ``memory`` and ``proof_memory`` the
    bytes of private memory that converting and the quick proof take (memory.py), ``run_memory`` what running
    a file takes besides its weights (recommendation.py).
    """

    source: Path
    arch: str
    parameters: int
    types: tuple[PlannedType, ...]
    refused: tuple[RefusedType, ...]
    companions: tuple[PlannedCompanion, ...]
    folder: Path
    free: int
    memory: int
    proof_memory: int
    run_memory: RunMemory
    parity: Parity
    notes: tuple[Note, ...]

    @property
    def companion_bytes(self) -> int:
        """Bytes of the files written besides those of the types."""
        return sum(companion.bytes for companion in self.companions)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "source": str(self.source),
            "architecture": self.arch,
            "parameters": self.parameters,
            "types": [
                {**each.to_json(), "fits_on_disk": each.bytes + self.companion_bytes <= self.free}
                for each in self.types
            ],
            "refused": [asdict(each) for each in self.refused],
            "companions": [{"path": str(each.path), "bytes": each.bytes} for each in self.companions],
            "disk": {
                "folder": str(self.folder),
                "free_bytes": self.free,
                "needed_bytes": self.companion_bytes + sum(each.bytes for each in self.types),
            },
            "memory_bytes": self.memory,
            "proof_memory_bytes": self.proof_memory,
            "run_memory": asdict(self.run_memory),
            "tokens": self.parity.to_json(),
            "notes": [asdict(note) for note in self.notes],
        }


def plan(
    source: str | Path,
    output: str | Path | None = None,
    *,
    options: Options | None = None,
    threads: int | None = None,
    progress: Progress = silent,
    observer: Observer = UNOBSERVED,
) -> Plan:
    """What ``to_gguf`` with the same ``options`` would write to ``output``; without ``options`` every type.

    Raises what a conversion raises before it reads weights: CheckpointError, UnsupportedModel, MappingError,
    VocabError, TokenMismatch, UsageError, but not OutputExists; InputError where no type is possible.
    """
    options = options or Options(types=tuple(POLICIES))
    check_request(output, options)
    if options.chosen.targets and options.chosen.policy is None:
        raise UsageError(
            "what a target makes is known when losses have been measured, and plan reads no weights",
            hint="pass the --policy FILE of an earlier choice, or run kconv to-gguf with these options",
        )
    progress("opening", 0, 0)
    checkpoint, family = opened_headers(source)
    model, companions = build(family, checkpoint), family.companions(checkpoint)
    observer.opened(checkpoint.folder, model.arch, parameters(model))
    observer.noted(model.notes)
    targets = choose_targets(checkpoint, model, output, options, modelfile=False, force=True)
    progress("tokenizer", 0, 0)
    tokenizer = read_tokenizer(checkpoint, embedding_rows(model) if options.drop_extra_tokens else None)
    model, parity, _ = with_vocab(model, checkpoint, tokenizer, options, progress, observer)
    progress("planning", 0, 0)
    importance = None if options.imatrix is None else read_importance(options.imatrix)
    if options.calibrate:
        kept = learned_path(targets, checkpoint, options).name
        importance = importance_to_be(model.tensors, (Path(options.calibrate[0]).name,), kept)
    plan_of = partial(plan_of_target, model, companions, importance)
    targets, _ = with_choices(targets, None, model, importance, options, plan_of, Run())
    bare, vocabulary = replace(model, vocab=None), encode_pairs(gguf_keys(vocab_of(model)))
    folder = targets[0].path.absolute().parent
    types, refused = [], []
    for target in targets:
        try:
            types.append(_planned_type(target, bare, vocabulary, companions, importance))
        except InputError as error:
            refused.append(RefusedType(target.type, error.message))
            if len(refused) == len(targets):  # none is possible: an imatrix of another model, say
                raise
    return Plan(
        source=checkpoint.folder,
        arch=model.arch,
        parameters=parameters(model),
        types=tuple(types),
        refused=tuple(refused),
        companions=tuple(_planned_companion(companion, folder, checkpoint) for companion in companions),
        folder=folder,
        free=_free(folder),
        memory=conversion_memory(model, threads or available_cores()),
        proof_memory=proof_memory(model),
        run_memory=run_memory(model, embedding_rows(model)),
        parity=parity,
        notes=model.notes,
    )


def _planned_type(
    target: Target,
    model: Model,
    vocabulary: Sequence[bytes],
    companions: Sequence[Companion],
    importance: Importance | None,
) -> PlannedType:
    """One type of ``model``, whose vocabulary was left out: it is the same for all, encoded once."""
    used = importance
    try:
        choice = choose_formats(model, target.policy, used)
    except InputError:
        if importance is not None:
            raise
        used = importance_to_be(model.tensors)  # if that is not what was wanting, it is refused again
        choice = choose_formats(model, target.policy, used)
    _, (planned,) = plan_files(model, [target], companions, used)
    return PlannedType(
        type=target.type,
        path=planned.paths[0],
        parts=len(planned.paths),
        bytes=_file_bytes(planned, vocabulary),
        bits_per_weight=8 * planned.data_bytes / max(1, parameters(model)),
        formats=tuple(planned.weights.items()),
        fallbacks=tuple((name, wanted.name, given.name) for name, wanted, given in choice.fallbacks),
        fallback_weights=sum(model.tensor(name).elements for name, _, _ in choice.fallbacks),
        needs_imatrix=used is not importance,
        lossless=all(
            choice[tensor.name] in (F32, FORMATS[tensor.dtype.value.lower()]) for tensor in model.tensors
        ),
        notes=choice.notes,
        choice=target.choice,
    )


def _file_bytes(planned: FilePlan, vocabulary: Sequence[bytes] = ()) -> int:
    """Size of the file, or of all its parts; ``vocabulary`` are pairs the plan does not hold."""
    pairs = encode_pairs({"general.architecture": planned.arch, **planned.metadata})
    layout = replace(planned, pairs=(*pairs, *vocabulary)).layout()
    return sum(len(head) + data for head, data in layout)


def _planned_companion(companion: Companion, folder: Path, checkpoint: Checkpoint) -> PlannedCompanion:
    path = companion.place(folder, checkpoint_name(checkpoint))
    return PlannedCompanion(path, _file_bytes(plan_companion(path, companion.model)))


def _free(folder: Path) -> int:
    """Bytes free in a folder, or in the one it would be made in."""
    there = nearest_existing(folder)
    with explained(there):
        return shutil.disk_usage(there).free
