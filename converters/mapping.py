"""From a checkpoint's tensors to a model's and back, by the rows of its family."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby

import numpy as np

from ..core.checkpoint import Checkpoint
from ..core.errors import InputError, MappingError, UnsupportedModel
from ..core.model import Model
from ..core.tensor import Array, DType, Tensor
from .family import AnyFamily, Facts, Row, Runtime, Sizes
from .pooling import pooling_of

_GAPS_SHOWN = 12
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def build(family: AnyFamily, checkpoint: Checkpoint, runtime: Runtime = "llama.cpp") -> Model:
    """Map a checkpoint to a Model for ``runtime``; reads no weights but where a tied head must be compared.

    Raises MappingError naming every missing, unexpected and misshapen tensor, CheckpointError where the
    configuration itself makes no sense, UnsupportedModel for what the runtime's graphs cannot compute.
    """
    facts, sizes, flags = _read(family, checkpoint)
    if runtime not in family.limits:
        raise UnsupportedModel(
            f"kconv cannot write ONNX for {family.title} models ({', '.join(family.hf_classes)}) yet",
            hint="use kconv to-gguf for GGUF",
        )
    family.limits[runtime](facts)
    tensors: list[Tensor] = []
    gaps: list[str] = []
    used: set[str] = set()
    for row, i in _in_file_order(family.rows, sizes):
        if row.when is None or row.when in flags:
            tensors += _make(row, i, sizes, checkpoint, used, gaps)
    gaps += _unused(family, sizes, checkpoint, used)
    if gaps:
        raise _mapping_error(family, checkpoint, gaps)
    hparams = family.hparams(facts, checkpoint)
    tensors += family.extra(facts)
    remarks = family.remarks.get(runtime)
    notes = (*checkpoint.notes, *family.notes(facts, flags), *(remarks(facts) if remarks else ()))
    if family.encoder_only:
        notes = (*notes, *pooling_of(checkpoint).notes)
    return Model(
        family.arch,
        hparams,
        tuple(tensors),
        notes=notes,
        wide_inputs=family.wide_inputs,
        left_out=family.left_out(facts),
        granted=family.granted(facts),
    )


def unmapped(family: AnyFamily, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``build``: a file's tensors under the names and in the shapes of the checkpoint, lazily.

    ``tensors`` are a file's, by GGUF name, with PyTorch's order of axes. Tensors that come from no row, such
    as rope_freqs, are left out; an ``output.weight`` counts even where the checkpoint's head is tied, and a
    tied head is left out like in the checkpoint. Raises MappingError for tensors missing or misshapen.
    """
    _, sizes, flags = _read(family, checkpoint)
    restored: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    gaps: list[str] = []
    for row, i in _in_file_order(_one_for_each(family.rows, flags), sizes):
        if not row.sources:
            continue
        target = tensors.get(row.target.format(i=i))
        if target is not None and row.share is not None:
            (name,) = row.named(row.sources, i, sizes)
            found = parts.setdefault(name, {})
            found[row.share.place] = target
            if len(found) == row.share.count:
                joined = row.share.join([found[place] for place in sorted(found)], sizes)
                restored[name] = replace(joined, name=name)
        elif target is not None:
            restored.update(_unmake(row, i, sizes, target, gaps))
        elif row.when is None or row.when in flags:
            gaps.append(f"missing in the file: {row.target.format(i=i)}")
    if gaps:
        raise _mapping_error(family, checkpoint, gaps)
    return restored


def _one_for_each(rows: Sequence[Row], flags: frozenset[str]) -> list[Row]:
    """The rows in their order; of several with one target that which applies, else the first."""
    chosen: dict[str, Row] = {}
    for row in rows:
        if row.target not in chosen or row.when in flags:
            chosen[row.target] = row
    return [row for row in rows if chosen[row.target] is row]


def _unmake(row: Row, i: int, sizes: Sizes, target: Tensor, gaps: list[str]) -> dict[str, Tensor]:
    sources = (target,) if row.transform is None else row.transform.undo(target, sizes)
    expected = tuple(product(words, sizes) for words in row.shape)
    if sources[0].shape != expected:
        gaps.append(
            f"shape of {row.target.format(i=i)} in the file: {_shape(target.shape)}, but config.json implies "
            f"{_shape(expected)} ({', '.join(row.shape)})"
        )
    names = row.named(row.back_to or row.sources, i, sizes)
    return {name: replace(source, name=name) for name, source in zip(names, sources, strict=True)}


def untransformed(family: AnyFamily, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """By GGUF name the tensors that are transformed on the way, as they lie in the checkpoint."""
    _, sizes, flags = _read(family, checkpoint)
    tensors: dict[str, Tensor] = {}
    for row, i in _in_file_order(_one_for_each(family.rows, flags), sizes):
        names = row.named(row.sources, i, sizes)
        whole = row.transform is not None and row.share is None
        if whole and len(names) == 1 and names[0] in checkpoint.tensors:
            tensors[row.target.format(i=i)] = checkpoint.tensors[names[0]]
    return tensors


def sources_of(family: AnyFamily, checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """By GGUF name the checkpoint's names of what a target is made of, or made back to."""
    _, sizes, flags = _read(family, checkpoint)
    return {
        row.target.format(i=i): tuple(row.named(row.back_to or row.sources, i, sizes))
        for row, i in _in_file_order(family.rows, sizes)
        if row.sources and (row.when is None or row.when in flags)
    }


def _read(family: AnyFamily, checkpoint: Checkpoint) -> tuple[Facts, Sizes, frozenset[str]]:
    facts: Facts = family.read(checkpoint.config)
    sizes = facts.sizes
    refuse_too_many(family, sizes, len(checkpoint.tensors), f"{checkpoint.folder}/config.json")
    return facts, sizes, family.flags(facts, checkpoint)


def refuse_too_many(
    family: AnyFamily, sizes: Sizes, there: int, where: str, error: type[InputError] = MappingError
) -> None:
    """Raise ``error`` for more layers or experts than there are tensors, before millions are named."""
    layers = max(sizes[row.layers] for row in family.rows)
    several = [row for row in family.rows if any("{e}" in source for source in row.sources)]
    experts = max((sizes[row.layers] * sizes[row.experts] for row in several), default=0)
    if max(layers, experts) > there:
        what = f"{layers} layers" if layers > there else f"{experts} experts in all"
        raise error(
            f"{where} specifies {what}, but there are {there} tensors",
            hint="check that config.json belongs to these weight files and that all of them are there",
        )


def _in_file_order(rows: Sequence[Row], sizes: Sizes) -> Iterator[tuple[Row, int]]:
    """Layer after layer, as a model is read when it runs: what lies together is needed together."""
    for layers, group in groupby(rows, key=lambda row: row.layers if "{i}" in row.target else None):
        together = tuple(group)
        for i in range(1 if layers is None else sizes[layers]):
            yield from ((row, i) for row in together)


def _make(
    row: Row, i: int, sizes: Sizes, checkpoint: Checkpoint, used: set[str], gaps: list[str]
) -> list[Tensor]:
    expected = tuple(product(words, sizes) for words in row.shape)
    if not row.sources:
        return [_zeros(row.target.format(i=i), expected)]
    names = row.named(row.sources, i, sizes)
    missing = [name for name in names if name not in checkpoint.tensors]
    if missing:
        gaps += [
            f"missing: {name} (for {row.target.format(i=i)}){_kind(checkpoint, name)}" for name in missing
        ]
        return []
    used.update(names)
    sources = [checkpoint.tensors[name] for name in names]
    checked = (
        len(names) if len(names) > len(row.sources) else 1
    )  # experts are alike, what is joined need not be
    wrong = [at for at in range(checked) if sources[at].shape != expected]
    if wrong:
        gaps += [
            f"shape of {names[at]}: {_shape(sources[at].shape)}, but config.json implies {_shape(expected)} "
            f"({', '.join(row.shape)})"
            for at in wrong
        ]
        return []
    made = sources[0] if row.transform is None else row.transform.apply(sources, sizes)
    return [replace(made, name=row.target.format(i=i))]


def _zeros(name: str, shape: tuple[int, ...]) -> Tensor:
    origin = "zeros, which the graph requires"
    return Tensor(name, shape, DType.F32, partial(_read_zeros, shape), origin=origin, computed=True)


def _read_zeros(shape: tuple[int, ...], start: int, stop: int) -> Array:
    return np.zeros((stop - start, *shape[1:]), np.float32)


def _unused(family: AnyFamily, sizes: Sizes, checkpoint: Checkpoint, used: set[str]) -> list[str]:
    droppable = [re.compile(re.escape(p).replace(r"\{i\}", r"\d+") + r"\Z") for p in family.dropped]
    return [
        f"unexpected: {name} {_shape(tensor.shape)}"
        for name, tensor in checkpoint.tensors.items()
        if name not in used and not any(pattern.match(name) for pattern in droppable)
    ]


def parameters(model: Model) -> int:
    """Weights of the checkpoint; tensors computed from the configuration do not count."""
    return sum(tensor.elements for tensor in model.tensors if not tensor.computed)


def product(words: str, sizes: Sizes) -> int:
    """``"heads * head_dim"`` in numbers."""
    return math.prod(sizes[word] for word in words.split(" * "))


def _by_kind(gaps: Sequence[str]) -> list[str]:
    """The gaps of all layers in one line, ``#`` standing for the number."""
    kinds: dict[str, list[str]] = {}
    for gap in gaps:
        kinds.setdefault(_NUMBER.sub("#", gap), []).append(gap)
    return [each[0] if len(each) == 1 else f"{kind}: {len(each)} of them" for kind, each in kinds.items()]


def _kind(checkpoint: Checkpoint, name: str) -> str:
    kind = checkpoint.dropped.get(name)
    return f": it exists, but as {kind}" if kind else ""


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _mapping_error(family: AnyFamily, checkpoint: Checkpoint, gaps: Sequence[str]) -> MappingError:
    lines = list(gaps) if len(gaps) <= _GAPS_SHOWN else _by_kind(gaps)
    shown = [f"  {line}" for line in lines[:_GAPS_SHOWN]]
    if len(lines) > len(shown):
        shown.append(f"  … and {len(lines) - len(shown)} more{'' if lines == list(gaps) else ' kinds'}")
    count = "1 tensor does" if len(gaps) == 1 else f"{len(gaps)} tensors do"
    return MappingError(
        f"{checkpoint.folder}: {count} not fit the family {family.title}:\n" + "\n".join(shown),
        hint="check that config.json belongs to these weight files and that all of them are there",
    )
