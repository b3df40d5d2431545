"""Why a tensor differs, in words: looked for in a few rows of the tensors that do, cheapest guess first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.model import Model
from ..core.tensor import Tensor
from ..quant.ggml import Floats
from .gguf_weights import GgufFile
from .proof import Finding
from .same_model import layer_of
from .weight_errors import Compared, RowsFound, Sums, is_scaled
from .weight_limits import typical_error
from .weight_rows import Pair, alike, as_stored, column, rows_of, search

# Rows looked at, and how far a row is looked for in the neighbourhood of its place.
_SAMPLE = 8
_NEAR = 32
# Tensors for which whole tensors are searched for their rows; in the others only what is found at once.
_SEARCHED = 24
# Tensors named in a finding.
_NAMED = 4


@dataclass(frozen=True)
class Search:
    """Where causes are looked for: the file, the model and the checkpoint's tensors before the mapping."""

    file: GgufFile
    model: Model
    originals: Mapping[str, Tensor]
    tensors: int


@dataclass(frozen=True)
class _Cause:
    """Why one tensor differs; causes of equal ``key`` are told together.

    ``one`` is a sentence with ``{name}``, ``several`` one with ``{names}`` and ``{count}``.
    """

    key: tuple[object, ...]
    one: str
    several: str


@dataclass(frozen=True)
class _Case:
    """A tensor that differs, and some rows of it that do: numbers, the file's, the checkpoint's.

    ``error`` is the error encoding would have made.
    """

    pair: Pair
    found: Compared
    bad: RowsFound
    rows: tuple[int, ...]
    sample: Floats
    original: Floats
    error: float
    where: Search
    thorough: bool

    @property
    def count(self) -> int:
        """Rows of the tensor."""
        return self.pair.tensor.rows if len(self.pair.info.shape) > 1 else 1

    @property
    def mostly(self) -> bool:
        """Whether more than half of the rows differ."""
        return 2 * self.bad.count > self.count

    def matches(self, candidate: Floats) -> bool:
        """Whether these rows of the checkpoint, stored in the format, would look like the file's."""
        return alike(self.sample, candidate, self.error)


def findings_of(wrong: Sequence[tuple[Pair, Compared]], where: Search) -> list[Finding]:
    """Findings on the tensors that differ, those of one cause together."""
    groups: dict[tuple[object, ...], list[tuple[_Cause, Pair, Compared]]] = {}
    for number, (pair, found) in enumerate(wrong):
        cause = _cause(_case(pair, found, where, thorough=number < _SEARCHED))
        groups.setdefault(cause.key, []).append((cause, pair, found))
    _join_swapped(groups)
    return [_finding(group, where) for group in groups.values()]


def _join_swapped(groups: dict[tuple[object, ...], list[tuple[_Cause, Pair, Compared]]]) -> None:
    """Where one layer holds another's weights and that one its own, say that the two are swapped."""
    for key in list(groups):
        kind, *layers = key
        back = (kind, *reversed(layers))
        if kind != "another" or back == key or key not in groups or back not in groups:
            continue
        group = groups[key] + groups.pop(back)
        first, second = layers
        text = f"layers {first} and {second} are swapped ({{count}} tensors: {{names}})"
        groups[key] = [(replace(cause, several=text), pair, found) for cause, pair, found in group]


def _finding(group: Sequence[tuple[_Cause, Pair, Compared]], where: Search) -> Finding:
    cause, pair, _ = group[0]
    found = max((item[2] for item in group), key=lambda found: found.found.error)
    error = f"relative error {found.found.error:.4g}"
    own = None if found.own is None else f"relative error {found.own.error:.4g}"
    if len(group) == 1:
        return Finding(pair.info.name, cause.one.format(name=pair.info.name), expected=own, found=error)
    names = [item[1].info.name for item in group]
    shown = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    count = f"{len(names)} of {where.tensors}"
    return Finding(names[0], cause.several.format(names=shown, count=count), expected=own, found=error)


def _case(pair: Pair, found: Compared, where: Search, *, thorough: bool) -> _Case:
    bad = found.far if found.far.count else found.changed
    step = -(-len(bad.examples) // _SAMPLE) or 1
    rows = bad.examples[::step] or (0,)
    own = found.own.error if found.own is not None else typical_error(pair.format)
    sample = rows_of(where.file.tensor(pair.info), rows)
    return _Case(pair, found, bad, rows, sample, rows_of(pair.tensor, rows), own, where, thorough)


def _cause(case: _Case) -> _Cause:
    """The first explanation that fits."""
    for explain in _EXPLANATIONS:
        cause = explain(case)
        if cause is not None:
            return cause
    return _unexplained(case)


def _not_finite(case: _Case) -> _Cause | None:
    count = case.found.not_finite
    if not count:
        return None
    return _Cause(
        ("not finite",),
        f"{count} weights of {{name}} are NaN or infinite, the checkpoint's are not",
        "{count} tensors hold weights that are NaN or infinite where the checkpoint's are not: {names}",
    )


def _same_numbers(case: _Case) -> _Cause | None:
    if case.found.own is None or case.found.different:
        return None
    text = "the same numbers in other bytes, so kconv did not write them"
    return _Cause(("same numbers",), f"{{name}} holds {text}", f"{{count}} tensors hold {text}: {{names}}")


def _zeros(case: _Case) -> _Cause | None:
    if case.found.found.found == 0:
        return _Cause(("zeros",), "{name} is all zeros", "{count} tensors are all zeros: {names}")
    zero = case.found.zero
    if not zero.count or zero.count < case.bad.count:
        return None
    return _rows_cause(zero, "is all zeros", "are all zeros")


def _rows_cause(rows: RowsFound, one: str, several: str) -> _Cause:
    """Something about one or some rows of a tensor."""
    if rows.count == 1:
        text = f"row {rows.first} of {{name}} {one}"
    else:
        text = f"{rows.count} rows of {{name}}, from row {rows.first} to {rows.last}, {several}"
    return _Cause((several, rows.first, rows.last), text, f"rows of {{count}} tensors {several}: {{names}}")


def _not_permuted(case: _Case) -> _Cause | None:
    raw = case.where.originals.get(case.pair.info.name)
    if raw is None or raw.shape != case.pair.info.shape or not case.matches(rows_of(raw, case.rows)):
        return None
    why = "rows are in another order: attention heads not permuted as llama.cpp wants"
    return _Cause(("order",), f"{{name}}: {why}", f"{{count}} tensors: {why} ({{names}})")


def _scaled(case: _Case) -> _Cause | None:
    sums, own = case.found.found, case.found.own or Sums()
    if not sums.weights or not sums.found or sums.cross == 0:
        return None
    residue = max(0.0, 1 - sums.cross**2 / (sums.weights * sums.found)) ** 0.5
    factor = sums.slope / (own.slope or 1.0)
    if is_scaled(case.found) and case.found.against_own is not None:
        factor = case.found.against_own.slope
    elif residue > 1.5 * case.error + 1e-4 or abs(factor - 1) < 0.001:
        return None
    text = f"scaled by {factor:.4f}"
    return _Cause((text,), f"{{name}} is {text}", f"{{count}} tensors are {text}: {{names}}")


def _another_tensor(case: _Case) -> _Cause | None:
    if not case.mostly or not case.thorough:
        return None
    name = case.pair.info.name
    for tensor in _alternatives(case):
        if case.matches(rows_of(tensor, case.rows)):
            here, there = layer_of(name), layer_of(tensor.name)
            several = "{count} tensors hold the weights of others of the checkpoint: {names}"
            if here is not None and there is not None:
                several = f"layer {here} holds weights of layer {there} of the checkpoint: {{names}}"
            one = f"{{name}} is {tensor.name} of the checkpoint"
            return _Cause(("another", here, there), one, several)
    return None


def _alternatives(case: _Case) -> Iterator[Tensor]:
    """Other tensors of the shape; those of the same kind in other layers first."""
    name = case.pair.info.name
    kind = name.rsplit(".", 2)[-2:]
    others = [t for t in case.where.model.tensors if t.shape == case.pair.info.shape and t.name != name]
    yield from sorted(others, key=lambda tensor: tensor.name.rsplit(".", 2)[-2:] != kind)


def _rounded(case: _Case) -> _Cause | None:
    """Float weights that went through a shorter float on the way."""
    if case.pair.format.quantized:
        return None
    for short in ("f16", "bf16"):
        if np.array_equal(case.sample, as_stored(case.original, short, case.pair.format.name)):
            text = f"rounded to {short.upper()} on the way"
            one = f"the weights of {{name}} were {text}"
            return _Cause((text,), one, f"the weights of {{count}} tensors were {text}: {{names}}")
    return None


def _shifted(case: _Case) -> _Cause | None:
    """The same rows, some places away."""
    if len(case.pair.info.shape) != 2:
        return None
    for shift in sorted(range(-_NEAR, _NEAR + 1), key=abs):
        places = [row - shift for row in case.rows]
        if shift == 0 or min(places) < 0 or max(places) >= case.count:
            continue
        if case.matches(rows_of(case.pair.tensor, places)):
            first = case.bad.first
            if case.bad.count == 1:
                text = f"row {first} of {{name}} is row {first - shift} of the checkpoint"
            else:
                end = "on" if case.bad.last == case.count - 1 else f"to {case.bad.last}"
                distance = "one" if abs(shift) == 1 else str(abs(shift))
                text = (
                    f"the rows of {{name}} are shifted by {distance} from row {first} {end} "
                    f"(row {case.rows[0]} is row {places[0]} of the checkpoint)"
                )
            return _Cause(("shifted", first, shift), text, "the rows of {count} tensors are shifted: {names}")
    return None


def _rolled(case: _Case) -> _Cause | None:
    for shift in sorted(range(-_SAMPLE, _SAMPLE + 1), key=abs):
        if shift and case.matches(np.roll(case.original, shift, axis=1)):
            text = f"shifted by {abs(shift)} column{'s' if abs(shift) > 1 else ''}"
            return _rows_cause(case.bad, f"is {text}", f"are {text}")
    return None


def _transposed(case: _Case) -> _Cause | None:
    shape = case.pair.info.shape
    if not (case.mostly and case.thorough and len(shape) == 2 and shape[0] == shape[1]):
        return None
    if not case.matches(column(case.pair.tensor, case.rows)):
        return None
    return _Cause(("transposed",), "{name} is transposed", "{count} tensors are transposed: {names}")


def _reordered(case: _Case) -> _Cause | None:
    """The same rows, in places that follow no rule known here."""
    if not case.thorough or len(case.pair.info.shape) != 2:
        return None
    chosen = case.rows[: _SAMPLE // 2]
    places = search(case.pair.tensor, case.sample[: len(chosen)])
    if not _at_places(case, places):
        return None
    pairs = [(row, place) for row, place in zip(chosen, places, strict=True) if row != place]
    if not pairs:
        return None
    row, place = pairs[0]
    if case.bad.count <= _SAMPLE:
        return _rows_cause(
            case.bad,
            f"is row {place} of the checkpoint",
            f"are others of the checkpoint (row {row} is {place})",
        )
    return _Cause(
        ("reordered",),
        f"the rows of {{name}} are in another order (row {row} is row {place} of the checkpoint)",
        "the rows of {count} tensors are in another order: {names}",
    )


def _at_places(case: _Case, places: Sequence[int]) -> bool:
    """Whether the first rows of the sample are those of these places."""
    return alike(case.sample[: len(places)], rows_of(case.pair.tensor, places), case.error)


def _unexplained(case: _Case) -> _Cause:
    found = case.found
    usual = (
        f", {case.error:.3g} is usual for {case.pair.format.display}" if case.pair.format.quantized else ""
    )
    error = f"relative error {found.found.error:.3g}{usual}"
    if case.bad.count and not case.mostly:
        rows = _rows_cause(case.bad, f"differs ({error})", f"differ ({error})")
        return _Cause(("some rows",), rows.one, "some rows of {count} tensors differ: {names}")
    first = "" if found.first is None else f"; the first at row {found.first[0]}, column {found.first[1]}"
    share = (
        f"{found.different} of {found.weights} weights differ" if found.different else "differs throughout"
    )
    return _Cause(
        ("unexplained",),
        f"{{name}} is not the checkpoint's: {share} ({error}){first}",
        "{count} tensors are not the checkpoint's, perhaps of another revision or a fine-tune: {names}",
    )


_EXPLANATIONS: tuple[Callable[[_Case], _Cause | None], ...] = (
    _not_finite,
    _same_numbers,
    _zeros,
    _not_permuted,
    _scaled,
    _rounded,
    _shifted,
    _rolled,
    _another_tensor,
    _transposed,
    _reordered,
)
