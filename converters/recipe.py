"""Recipes: which tensor of a file comes from which tensors of a checkpoint.

A recipe is a table. Every row names its target and all its sources, with the expected shape in words; the
mapping is total: each source tensor is used or dropped by name, each target is made, or one MappingError
lists everything that does not fit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..core.checkpoint import Checkpoint
from ..core.errors import MappingError
from ..core.model import MetadataValue, Model, Note
from ..core.tensor import Array, DType, Tensor
from .settings import Settings

Sizes = Mapping[str, int]
Runtime = Literal["llama.cpp", "ONNX"]

_GAPS_SHOWN = 40


@dataclass(frozen=True)
class Transform:
    """How a target comes from its sources, and how they come back from it; lazy both ways.

    ``undo(apply(sources))`` gives the sources again, in the order of ``Row.sources``: through it the fp32
    reference reads a converted file's weights.
    """

    apply: Callable[[Sequence[Tensor], Sizes], Tensor]
    undo: Callable[[Tensor, Sizes], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One target tensor.

    ``{i}`` in names counts the layers. ``shape`` is that of the first source, in words of the recipe's
    sizes: ``("heads * head_dim", "hidden")``. ``transform`` makes the target from the sources (default:
    the source as it is). ``when`` names the flag of ``Recipe.flags`` under which the row exists; without the
    flag its sources must not be there either. ``layers`` is the recipe's word for the number of layers. A row
    without sources is zeros of that shape, for graphs that insist on a bias the model does not have.
    ``back_to`` names what the inverse gives where that is not the sources: a head made from the embedding
    stands for ``lm_head.weight``. Rows may share a target if their flags exclude one another.
    """

    target: str
    sources: tuple[str, ...]
    shape: tuple[str, ...] = ()
    transform: Transform | None = None
    when: str | None = None
    layers: str = "layers"
    back_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Companion:
    """A second file that all files of a conversion need beside them: what llama.cpp has no graph for.

    ``model`` goes into it, everything in f32, ``place`` gives its path from the folder and the checkpoint's
    name, ``keys`` are those by which each body names it. ``lies_at`` tells whether a file is this companion
    already, as another conversion of the checkpoint has written it.
    """

    model: Model
    keys: Mapping[str, MetadataValue]
    place: Callable[[Path, str], Path]
    lies_at: Callable[[Path], bool]


@dataclass(frozen=True)
class Recipe:
    """How one architecture becomes a GGUF model; ``models`` names the ones it is known for.

    ``sizes`` reads the words used in shapes from the settings (``layers`` is required), ``flags`` the
    conditions of rows, ``hparams`` the GGUF keys without the architecture's prefix, ``from_files`` those that
    other files than config.json decide, ``extra`` tensors computed from the settings.
    ``dropped`` are patterns (with ``{i}``) of tensors that carry nothing. ``limits`` raise UnsupportedModel
    for what the graphs of a runtime cannot compute.
    ``hf_classes[0]`` is transformers' class of the model, which the fp32 reference runs;
    ``for_transformers`` puts into its present words what config.json may say otherwise. ``gelu`` says that
    the activation is a GELU, which llama.cpp computes through a table of half floats (ggml-cpu/vec.h), so
    that logits are less exact than in other families. ``encoder_decoder`` says that text goes through
    llama_encode and that the decoder begins with ``decoder_start_token_id``. ``companions`` are the files the
    model needs besides its own.
    """

    name: str
    title: str
    models: tuple[str, ...]
    hf_classes: tuple[str, ...]
    arch: str
    sizes: Callable[[Settings], Sizes]
    flags: Callable[[Settings, Checkpoint], frozenset[str]]
    hparams: Callable[[Settings, Sizes], Mapping[str, MetadataValue]]
    rows: tuple[Row, ...]
    limits: Mapping[Runtime, Callable[[Settings, Sizes], None]]
    dropped: tuple[str, ...] = ()
    extra: Callable[[Settings, Sizes], Sequence[Tensor]] = lambda settings, sizes: ()
    notes: Callable[[Settings, frozenset[str]], Sequence[Note]] = lambda settings, flags: ()
    from_files: Callable[[Settings, Checkpoint], Mapping[str, MetadataValue]] = lambda settings, folder: {}
    for_transformers: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: config
    gelu: bool = False
    encoder_decoder: bool = False
    companions: Callable[[Checkpoint], Sequence[Companion]] = lambda checkpoint: ()


def build(recipe: Recipe, checkpoint: Checkpoint, runtime: Runtime = "llama.cpp") -> Model:
    """Map a checkpoint to a Model for ``runtime``; reads no weights but where a tied head must be compared.

    Raises MappingError naming every missing, unexpected and misshapen tensor, CheckpointError where the
    configuration itself makes no sense, UnsupportedModel for what the runtime's graphs cannot compute.
    """
    settings, sizes, flags = _read(recipe, checkpoint)
    recipe.limits[runtime](settings, sizes)
    tensors: list[Tensor] = []
    gaps: list[str] = []
    used: set[str] = set()
    for row, i in _in_file_order(recipe.rows, sizes):
        if row.when is None or row.when in flags:
            tensors += _make(row, i, sizes, checkpoint, used, gaps)
    gaps += _unused(recipe, sizes, checkpoint, used)
    if gaps:
        raise _mapping_error(recipe, checkpoint, gaps)
    keys = {**recipe.hparams(settings, sizes), **recipe.from_files(settings, checkpoint)}
    hparams = {f"{recipe.arch}.{key}": value for key, value in keys.items()}
    tensors += recipe.extra(settings, sizes)
    return Model(recipe.arch, hparams, tuple(tensors), notes=tuple(recipe.notes(settings, flags)))


def unmapped(recipe: Recipe, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``build``: a file's tensors under the names and in the shapes of the checkpoint, lazily.

    ``tensors`` are a file's, by GGUF name, with PyTorch's order of axes. Tensors that come from no row, such
    as rope_freqs, are left out; an ``output.weight`` counts even where the checkpoint's head is tied, and a
    tied head is left out like in the checkpoint. Raises MappingError for tensors missing or misshapen.
    """
    _, sizes, flags = _read(recipe, checkpoint)
    found: dict[str, Tensor] = {}
    gaps: list[str] = []
    for row, i in _in_file_order(_one_for_each(recipe.rows, flags), sizes):
        if not row.sources:
            continue
        target = tensors.get(row.target.format(i=i))
        if target is not None:
            found.update(_unmake(row, i, sizes, target, gaps))
        elif row.when is None or row.when in flags:
            gaps.append(f"missing in the file: {row.target.format(i=i)}")
    if gaps:
        raise _mapping_error(recipe, checkpoint, gaps)
    return found


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
            f"shape of {row.target.format(i=i)} in the file: {_shape(target.shape)}, but config.json says "
            f"{_shape(expected)} ({', '.join(row.shape)})"
        )
    names = [source.format(i=i) for source in row.back_to or row.sources]
    return {name: replace(source, name=name) for name, source in zip(names, sources, strict=True)}


def untransformed(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """By GGUF name the tensors that are transformed on the way, as they lie in the checkpoint."""
    _, sizes, flags = _read(recipe, checkpoint)
    found: dict[str, Tensor] = {}
    for row, i in _in_file_order(_one_for_each(recipe.rows, flags), sizes):
        names = [source.format(i=i) for source in row.sources]
        if row.transform is not None and len(names) == 1 and names[0] in checkpoint.tensors:
            found[row.target.format(i=i)] = checkpoint.tensors[names[0]]
    return found


def sources_of(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, tuple[str, ...]]:
    """By GGUF name the checkpoint's names of what a target is made of, or made back to."""
    _, sizes, flags = _read(recipe, checkpoint)
    return {
        row.target.format(i=i): tuple(source.format(i=i) for source in row.back_to or row.sources)
        for row, i in _in_file_order(recipe.rows, sizes)
        if row.sources and (row.when is None or row.when in flags)
    }


def _read(recipe: Recipe, checkpoint: Checkpoint) -> tuple[Settings, Sizes, frozenset[str]]:
    settings = Settings(checkpoint.config, "config.json")
    sizes = recipe.sizes(settings)
    most = max(sizes[row.layers] for row in recipe.rows)
    if most > len(checkpoint.tensors):  # before a list of millions of gaps is made
        gap = f"config.json says {most} layers, but there are {len(checkpoint.tensors)} tensors"
        raise _mapping_error(recipe, checkpoint, [gap])
    return settings, sizes, recipe.flags(settings, checkpoint)


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
    names = [source.format(i=i) for source in row.sources]
    missing = [name for name in names if name not in checkpoint.tensors]
    if missing:
        gaps += [
            f"missing: {name} (for {row.target.format(i=i)}){_kind(checkpoint, name)}" for name in missing
        ]
        return []
    used.update(names)
    sources = [checkpoint.tensors[name] for name in names]
    if sources[0].shape != expected:
        gaps.append(
            f"shape of {names[0]}: {_shape(sources[0].shape)}, but config.json says {_shape(expected)} "
            f"({', '.join(row.shape)})"
        )
        return []
    made = sources[0] if row.transform is None else row.transform.apply(sources, sizes)
    return [replace(made, name=row.target.format(i=i))]


def _zeros(name: str, shape: tuple[int, ...]) -> Tensor:
    def read(start: int, stop: int) -> Array:
        return np.zeros((stop - start, *shape[1:]), np.float32)

    return Tensor(name, shape, DType.F32, read, origin="zeros, which the graph asks for", computed=True)


def _unused(recipe: Recipe, sizes: Sizes, checkpoint: Checkpoint, used: set[str]) -> list[str]:
    droppable = [re.compile(re.escape(p).replace(r"\{i\}", r"\d+") + r"\Z") for p in recipe.dropped]
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


def _kind(checkpoint: Checkpoint, name: str) -> str:
    kind = checkpoint.dropped.get(name)
    return f": it is there, but as {kind}" if kind else ""


def _shape(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def _mapping_error(recipe: Recipe, checkpoint: Checkpoint, gaps: Sequence[str]) -> MappingError:
    shown = [f"  {gap}" for gap in gaps[:_GAPS_SHOWN]]
    if len(gaps) > len(shown):
        shown.append(f"  … and {len(gaps) - len(shown)} more")
    count = "1 tensor does" if len(gaps) == 1 else f"{len(gaps)} tensors do"
    return MappingError(
        f"{checkpoint.folder}: {count} not fit the recipe {recipe.title}:\n" + "\n".join(shown),
        hint="check that config.json belongs to these weight files and that all of them are there",
    )
