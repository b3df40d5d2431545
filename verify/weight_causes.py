"""Why a tensor differs, in words: looked for in a few rows of the tensors that do, cheapest guess first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.model import Model
from ..core.tensor import Tensor
from ..quant.ggml import Floats
from ..quant.gguf_weights import GgufFile
from ..quant.low_rank import ROWS, rank_of_update
from .same_model import block_of
from .weight_errors import Compared, MarkedRows, is_scaled
from .weight_limits import typical_error, typical_slope
from .weight_rows import Pair, alike, as_stored, column, rows_of, search

# Rows looked at, and how far a row is looked for in the neighbourhood of its place.
_SAMPLE = 8
_NEAR = 32

# Keys of what is left: differing throughout without a cause that is known, and not looked at so closely.
UNEXPLAINED = ("unexplained",)
UNSEARCHED = ("unsearched",)


@dataclass(frozen=True)
class Search:
    """Where causes are looked for: the file, the model and the checkpoint's tensors before the mapping."""

    file: GgufFile
    model: Model
    originals: Mapping[str, Tensor]
    tensors: int


@dataclass(frozen=True)
class Cause:
    """Why one tensor differs; causes of equal ``key`` are reported together.

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
    compared: Compared
    bad: MarkedRows
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


def _case(pair: Pair, compared: Compared, where: Search, *, thorough: bool) -> _Case:
    bad = next((rows for rows in (compared.far, compared.worse) if rows.count), compared.changed)
    # Some neighbours and some far apart: a rule that fits only every other row is none.
    near, rest = bad.examples[: _SAMPLE // 2], bad.examples[_SAMPLE // 2 :]
    rows = (*near, *rest[:: -(-len(rest) // (_SAMPLE // 2)) or 1]) or (0,)
    own = compared.own.error if compared.own is not None else typical_error(pair.format)
    sample = rows_of(where.file.tensor(pair.info), rows)
    return _Case(pair, compared, bad, rows, sample, rows_of(pair.tensor, rows), own, where, thorough)


def cause_of(pair: Pair, compared: Compared, where: Search, *, thorough: bool) -> Cause:
    """The first explanation that fits; ``thorough``: whole tensors may be searched for the rows."""
    case = _case(pair, compared, where, thorough=thorough)
    for explain in _EXPLANATIONS:
        cause = explain(case)
        if cause is not None:
            return cause
    return _unexplained(case)


def _not_finite(case: _Case) -> Cause | None:
    count = case.compared.not_finite
    if not count:
        return None
    return Cause(
        ("not finite",),
        f"{count} weights of {{name}} are NaN or infinite, but not in the checkpoint",
        "{count} tensors have NaN or infinite weights that are finite in the checkpoint: {names}",
    )


def _same_numbers(case: _Case) -> Cause | None:
    if case.compared.own is None or case.compared.different:
        return None
    text = "the same numbers in other bytes, so they were not written by kconv"
    return Cause(("same numbers",), f"{{name}} has {text}", f"{{count}} tensors have {text}: {{names}}")


def _zeros(case: _Case) -> Cause | None:
    if case.compared.stored.stored == 0:
        return Cause(("zeros",), "{name} is all zeros", "{count} tensors are all zeros: {names}")
    zero = case.compared.zero
    if not zero.count or zero.count < case.bad.count:
        return None
    return _rows_cause(zero, "is all zeros", "are all zeros")


def _ones(case: _Case) -> Cause | None:
    same = case.mostly and (case.sample == 1).all()
    return Cause(("ones",), "{name} is all ones", "{count} tensors are all ones: {names}") if same else None


def _rows_cause(rows: MarkedRows, one: str, several: str) -> Cause:
    """Something about one or some rows of a tensor."""
    if rows.count == 1:
        text = f"row {rows.first} of {{name}} {one}"
    else:
        text = f"{rows.count} rows of {{name}}, from row {rows.first} to {rows.last}, {several}"
    return Cause((several, rows.first, rows.last), text, f"rows of {{count}} tensors {several}: {{names}}")


def _not_permuted(case: _Case) -> Cause | None:
    raw = case.where.originals.get(case.pair.info.name)
    if raw is None or raw.shape != case.pair.info.shape or not case.matches(rows_of(raw, case.rows)):
        return None
    why = "rows are in another order: attention heads are not permuted as llama.cpp requires"
    return Cause(("order",), f"{{name}}: {why}", f"{{count}} tensors: {why} ({{names}})")


def _scaled(case: _Case) -> Cause | None:
    sums, own = case.compared.stored, case.compared.own
    if not sums.weights or not sums.stored or sums.cross == 0:
        return None
    residue = max(0.0, 1 - sums.cross**2 / (sums.weights * sums.stored)) ** 0.5
    usual, slack = (typical_slope(case.pair.format), 0.02) if own is None else (own.slope, 0.001)
    factor = sums.slope / (usual or 1.0)
    if is_scaled(case.compared) and case.compared.against_own is not None:
        factor = case.compared.against_own.slope
    elif residue > 1.5 * case.error + 1e-4 or abs(factor - 1) < slack:
        return None
    text = f"scaled by {factor:.4f}"
    return Cause((text,), f"{{name}} is {text}", f"{{count}} tensors are {text}: {{names}}")


def _another_tensor(case: _Case) -> Cause | None:
    if not case.mostly or not case.thorough:
        return None
    name = case.pair.info.name
    for tensor in _alternatives(case):
        if case.matches(rows_of(tensor, case.rows)):
            here, there = block_of(name), block_of(tensor.name)
            one = f"{{name}} contains {tensor.name} of the checkpoint"
            if here == there:
                return Cause(("another", name, tensor.name), one, one)
            several = "{count} tensors contain the weights of other tensors of the checkpoint: {names}"
            if here is not None and there is not None:
                places = [f"layer {place}" if isinstance(place, int) else place for place in (here, there)]
                several = f"{places[0]} contains the weights of {places[1]} of the checkpoint: {{names}}"
            return Cause(("another", here, there), one, several)
    return None


def _alternatives(case: _Case) -> Iterator[Tensor]:
    """Other tensors of the shape; those of the same kind in other layers first."""
    name = case.pair.info.name
    kind = name.rsplit(".", 2)[-2:]
    others = [t for t in case.where.model.tensors if t.shape == case.pair.info.shape and t.name != name]
    yield from sorted(others, key=lambda tensor: tensor.name.rsplit(".", 2)[-2:] != kind)


def _rounded(case: _Case) -> Cause | None:
    """Float weights that went through a shorter float on the way."""
    if case.pair.format.quantized:
        return None
    for short in ("f16", "bf16"):
        if np.array_equal(case.sample, as_stored(case.original, short, case.pair.format.name)):
            text = f"rounded to {short.upper()} on the way"
            one = f"the weights of {{name}} were {text}"
            return Cause((text,), one, f"the weights of {{count}} tensors were {text}: {{names}}")
    return None


def _shifted(case: _Case) -> Cause | None:
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
            return Cause(("shifted", first, shift), text, "the rows of {count} tensors are shifted: {names}")
    return None


def _rolled(case: _Case) -> Cause | None:
    for shift in sorted(range(-_SAMPLE, _SAMPLE + 1), key=abs):
        if shift and case.matches(np.roll(case.original, shift, axis=1)):
            text = f"shifted by {abs(shift)} column{'s' if abs(shift) > 1 else ''}"
            return _rows_cause(case.bad, f"is {text}", f"are {text}")
    return None


def _transposed(case: _Case) -> Cause | None:
    shape = case.pair.info.shape
    if not (case.mostly and case.thorough and len(shape) == 2 and shape[0] == shape[1]):
        return None
    if not case.matches(column(case.pair.tensor, case.rows)):
        return None
    return Cause(("transposed",), "{name} is transposed", "{count} tensors are transposed: {names}")


def _reordered(case: _Case) -> Cause | None:
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
            f"are other rows of the checkpoint (row {row} is row {place})",
        )
    return Cause(
        ("reordered",),
        f"the rows of {{name}} are in another order (row {row} is row {place} of the checkpoint)",
        "the rows of {count} tensors are in another order: {names}",
    )


def _at_places(case: _Case, places: Sequence[int]) -> bool:
    """Whether the first rows of the sample are those of these places."""
    return alike(case.sample[: len(places)], rows_of(case.pair.tensor, places), case.error)


def _unexplained(case: _Case) -> Cause:
    diff = case.compared
    usual = (
        f", {case.error:.3g} is usual for {case.pair.format.display}" if case.pair.format.quantized else ""
    )
    error = f"relative error {diff.stored.error:.3g}{usual}"
    if case.bad.count and not case.mostly:
        rows = _rows_cause(case.bad, f"differs ({error})", f"differ ({error})")
        return Cause(("some rows",), rows.one, "some rows of {count} tensors differ: {names}")
    first = "" if diff.first is None else f"; the first at row {diff.first[0]}, column {diff.first[1]}"
    share = f"{diff.different} of {diff.weights} weights differ" if diff.different else "differs throughout"
    if not case.thorough:
        return Cause(UNSEARCHED, "{name} also differs", "{count} tensors also differ: {names}")
    return Cause(
        UNEXPLAINED,
        f"{{name}} does not match the checkpoint: {share} ({error}){first}",
        "{count} tensors do not match the checkpoint, perhaps from another revision or a fine-tune: {names}",
    )


def _adapted(case: _Case) -> Cause | None:
    if not (case.mostly and case.thorough and len(case.pair.info.shape) == 2):
        return None
    rows = range(0, case.count, max(1, case.count // ROWS))
    stored = rows_of(case.where.file.tensor(case.pair.info), rows)
    rank = rank_of_update(stored, rows_of(case.pair.tensor, rows), case.error)
    why = "changed by an update of low rank, as merging a LoRA adapter does"
    one, several = f"{{name}} is {why} (rank {rank})", f"{{count}} tensors are {why}: {{names}}"
    return None if rank is None else Cause(("low rank",), one, several)


_EXPLANATIONS: tuple[Callable[[_Case], Cause | None], ...] = (
    _not_finite,
    _same_numbers,
    _zeros,
    _ones,
    _not_permuted,
    _scaled,
    _rounded,
    _shifted,
    _rolled,
    _another_tensor,
    _transposed,
    _reordered,
    _adapted,
)
