"""Rows for a model without a family: told by llama.cpp's own names, and by the weights themselves.

Names say which tensors belong together, not what a converter did with them on the way. So every transform
known of llama.cpp's converters that fits the shapes is tried on a part of a few layers, and the one that
makes the file's weights of the checkpoint's is that of the whole kind (``attn_q`` of all layers): a layer
where it does not is wrong. Where none comes near anywhere, nothing is claimed of that kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ..core.tensor import Array, DType, Tensor
from .cutting import Cut, cuts, parted
from .family import Row, Share, Sizes, Transform
from .gguf_names import names_in_gguf, names_of_parts
from .reshaping import rows_between, transpose
from .transforms import as_a_copy, concatenated, interleave_heads, plus_one, read_wide, stack

_LAYER = re.compile(r"blk\.\d+\.")
_NEAR = 0.9  # relative error; of weights that have nothing to do with each other it is 1.4
_LAYERS_TRIED = 8
_ROWS_TRIED = 256
_JOINED = re.compile(r"(blk\.\d+\.)attn_qkv(\.weight|\.bias)")
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
_AS_THEY_ARE = (EMBEDDING, HEAD)
"""Rows of a vocabulary are nobody's to change."""


@dataclass(frozen=True)
class Told:
    """``rows``, as of a family; ``untold`` tensors of the file and ``left`` ones of the checkpoint no row
    has.
    """

    rows: tuple[Row, ...]
    untold: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True)
class _Case:
    """A tensor of the file, and those of the checkpoint its name says it is made of."""

    target: str
    stored: Tensor
    sources: tuple[Tensor, ...]
    part: str = ""
    """What the part of a source is called that is no tensor of the checkpoint."""


@dataclass
class _Sorted:
    """The file's tensors by kind, and rows there is nothing to choose about."""

    kinds: dict[str, list[_Case]] = field(default_factory=dict)
    rows: dict[str, Row] = field(default_factory=dict)
    shared: dict[tuple[str, ...], list[list[_Case]]] = field(default_factory=dict)
    """Of sources that were cut into several targets: by the parts' kinds the cases of each part."""


def rows_by_name(
    arch: str, layers: int, checkpoint: Mapping[str, Tensor], file: Mapping[str, Tensor], sizes: Sizes
) -> Told:
    """Rows from a checkpoint's tensors to those of a GGUF ``file`` of the architecture, by their names.

    ``sizes`` holds heads and kv_heads. Reads some rows of either. Raises what reading them raises.
    """
    groups: dict[str, list[str]] = {}
    told = names_in_gguf(arch, layers, checkpoint)
    for name in sorted(told, key=natural):
        groups.setdefault(told[name], []).append(name)
    found = _sorted(groups, checkpoint, file)
    _sort_shared(found, names_of_parts(arch, layers, told, checkpoint), checkpoint, file)
    rows = dict(found.rows)
    for places in found.shared.values():
        rows |= _shares(places, sizes)
    for cases in found.kinds.values():
        transform = _chosen(cases, sizes)
        if transform is not None:
            rows |= {case.target: _row(case.target, case.sources, transform.how) for case in cases}
    if HEAD in file and HEAD not in groups and EMBEDDING in rows:  # a tied head, written out
        (table,) = rows[EMBEDDING].sources
        rows[HEAD] = _row(HEAD, (checkpoint[table],), as_a_copy(), ("lm_head.weight",))
    used = {source for row in rows.values() for source in row.sources}
    ordered = [name for name in file if name in rows] + [name for name in rows if name not in file]
    return Told(
        tuple(rows[name] for name in ordered),
        tuple(name for name in file if name not in rows),
        tuple(name for name in checkpoint if name not in used),
    )


def natural(name: str) -> tuple[tuple[int, int, str], ...]:
    """A key that sorts expert 10 behind expert 9."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in name.split("."))


def _sorted(
    groups: Mapping[str, Sequence[str]], checkpoint: Mapping[str, Tensor], file: Mapping[str, Tensor]
) -> _Sorted:
    found = _Sorted()
    joined: set[str] = set()
    for target, stored in file.items():
        names: Sequence[str] = groups.get(target, ())
        match = _JOINED.fullmatch(target)
        if not names and match is not None:
            parts = [f"{match[1]}attn_{part}{match[2]}" for part in "qkv"]
            joined |= set(parts)
            names = [name for part in parts for name in groups.get(part, ())]
        if names:
            case = _Case(target, stored, tuple(checkpoint[name] for name in names))
            if target in _AS_THEY_ARE and len(names) == 1:
                found.rows[target] = _row(target, case.sources, None)
            else:
                found.kinds.setdefault(_LAYER.sub("", target), []).append(case)
    for target, names in groups.items():
        vector = len(names) == 1 and len(checkpoint[names[0]].shape) == 1
        if target not in file and target not in joined and (vector or target in _AS_THEY_ARE):
            found.rows[target] = _row(target, [checkpoint[name] for name in names], None)
    return found


def _sort_shared(
    found: _Sorted,
    parts: Mapping[str, Mapping[str, str]],
    checkpoint: Mapping[str, Tensor],
    file: Mapping[str, Tensor],
) -> None:
    """Sources that make no tensor of the file, but all of those named after their parts."""
    for source, targets in parts.items():
        if any(target not in file or target in found.rows for target in targets):
            continue
        kinds = tuple(_LAYER.sub("", target) for target in targets)
        places = found.shared.setdefault(kinds, [[] for _ in targets])
        for place, (target, name) in zip(places, targets.items(), strict=True):
            place.append(_Case(target, file[target], (checkpoint[source],), name))
        for kind, target in zip(kinds, targets, strict=True):
            found.kinds[kind] = [case for case in found.kinds.get(kind, ()) if case.target != target]
    found.kinds = {kind: cases for kind, cases in found.kinds.items() if cases}


def _row(
    target: str,
    sources: Sequence[Tensor],
    transform: Transform | None,
    back_to: tuple[str, ...] = (),
    share: Share | None = None,
) -> Row:
    shape = tuple(str(length) for length in sources[0].shape)
    names = tuple(source.name for source in sources)
    return Row(target, names, shape, transform=transform, back_to=back_to, share=share)


def numbers(rows: Sequence[Row]) -> dict[str, int]:
    """The words of the shapes of such rows, which are numbers, for the sizes of a family."""
    return {word: int(word) for row in rows for word in row.shape}


# What may have been done


@dataclass(frozen=True)
class _Way:
    """A way from sources to a target; ``how`` None: as it is."""

    how: Transform | None

    def of(self, sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        """The target."""
        return sources[0] if self.how is None else self.how.apply(sources, sizes)


def _ways(sources: Sequence[Tensor], sizes: Sizes) -> list[_Way]:
    """All there are for sources of those shapes, the likeliest first."""
    first = sources[0]
    if len(sources) > 1:
        if any(source.dtype is not first.dtype for source in sources):
            return []
        alike = len(first.shape) == 2 and all(source.shape == first.shape for source in sources)
        return [*([_Way(stack())] if alike else []), _Way(_join(sources))]
    ways = [_Way(None)]
    if len(first.shape) == 1:
        ways += [_Way(plus_one())]
        ways += [_Way(_plus_one_in_halves())] if first.dtype is DType.F16 else []
    if len(first.shape) > 1:
        ways.append(_Way(transpose()))
    if len(first.shape) < 3:
        words = ("heads", "kv_heads")
        fitting = [each for each in words if sizes[each] and first.rows % (2 * sizes[each]) == 0]
        ways += [_Way(interleave_heads(each)) for each in fitting]
        ways += [_Way(parted(groups, each)) for groups, each in _groups_of(sizes["heads"], first.rows)]
    return ways


def _groups_of(heads: int, rows: int) -> list[tuple[int, int]]:
    """How fused queries, keys and values may lie in groups: how many, and of how many heads each."""
    pairs = [(groups, heads // groups) for groups in range(1, heads + 1) if heads % groups == 0]
    return [(groups, each) for groups, each in pairs if rows % (groups * (each + 2)) == 0]


def _chosen(cases: Sequence[_Case], sizes: Sizes) -> _Way | None:
    """What was done with the tensors of a kind, None where that cannot be told.

    A damaged layer does not decide it, nor layers that are in each other's places.
    """
    votes: list[tuple[int, float, int, _Way]] = []
    for place, way in enumerate(_ways(cases[0].sources, sizes)):
        near, found = _found(cases, way, sizes)
        if found:
            votes.append((-len(near), _median(found), place, way))
    return min(votes, key=lambda vote: vote[:3])[3] if votes else None


def _shares(places: Sequence[Sequence[_Case]], sizes: Sizes) -> dict[str, Row]:
    """The rows of what was cut out of the same sources; all parts say together how it was done."""
    source = places[0][0].sources[0]
    votes: list[tuple[int, float, int, Cut]] = []
    for number, cut in enumerate(cuts(source, [cases[0].stored.shape for cases in places])):
        ways = [_Way(cut.part(place)[0]) for place in range(len(places))]
        each = [_found(cases, way, sizes) for cases, way in zip(places, ways, strict=True)]
        found = [error for _, errors in each for error in errors]
        if found:
            votes.append((-sum(len(near) for near, _ in each), _median(found), number, cut))
    if not votes:
        return {}
    cut = min(votes, key=lambda vote: vote[:3])[3]
    rows: dict[str, Row] = {}
    for place, cases in enumerate(places):
        transform, share = cut.part(place)
        for case in cases:
            if case.sources[0].shape == cut.shape:
                rows[case.target] = _row(case.target, case.sources, transform, (case.part,), share)
    return rows


def _found(cases: Sequence[_Case], way: _Way, sizes: Sizes) -> tuple[list[float], list[float]]:
    """The errors of the cases that are the same weights, and these or, without any, those of other layers."""
    tried = cases[:: -(-len(cases) // _LAYERS_TRIED)]
    near = _near([(case.stored, case.sources) for case in tried], way, sizes)
    # perhaps it is another layer's
    return near, near or _near([(tried[0].stored, case.sources) for case in tried[1:]], way, sizes)


def _median(errors: Sequence[float]) -> float:
    return sorted(errors)[(len(errors) - 1) // 2]


def _near(pairs: Iterable[tuple[Tensor, Sequence[Tensor]]], way: _Way, sizes: Sizes) -> list[float]:
    """The errors of those pairs of a tensor and its sources that are the same weights."""
    errors = (_error(stored, sources, way, sizes) for stored, sources in pairs)
    return [error for error in errors if error <= _NEAR]


@np.errstate(all="ignore")
def _error(stored: Tensor, sources: Sequence[Tensor], way: _Way, sizes: Sizes) -> float:
    """‖ŵ − w‖ / ‖w‖ over the first rows, 9 where the shapes do not fit."""
    made = way.of(sources, sizes)
    if made.shape != stored.shape:
        return 9.0
    rows = min(made.rows, 1 if len(made.shape) > 2 else _ROWS_TRIED if len(made.shape) > 1 else made.rows)
    expected = read_wide(made, 0, rows)
    difference, norm = read_wide(stored, 0, rows) - expected, float(np.linalg.norm(expected))
    error = float(np.linalg.norm(difference)) / (norm or 1.0)
    return error if np.isfinite(error) else 9.0


# Transforms families do not have


def _plus_one_in_halves() -> Transform:
    """``plus_one`` as converters compute it that keep F16."""

    def apply(sources: Sequence[Tensor], sizes: Sizes) -> Tensor:
        source = sources[0]
        return Tensor(source.name, source.shape, DType.F16, partial(_read_half, source))

    return Transform(apply, plus_one().undo)


def _read_half(source: Tensor, start: int, stop: int) -> Array:
    moved: Array = source.read(start, stop) + np.float16(1)
    return moved


def _join(sources: Sequence[Tensor]) -> Transform:
    """Matrices one above the other."""
    ends = np.cumsum([source.rows for source in sources]).tolist()

    def undo(target: Tensor, sizes: Sizes) -> Sequence[Tensor]:
        pairs = zip([0, *ends[:-1]], ends, strict=True)
        return [rows_between(target, start, stop) for start, stop in pairs]

    return Transform(lambda sources, sizes: concatenated(sources), undo)
