"""Why a tensor differs, in words: looked for in a few rows of the tensors that do, cheapest guess first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..core.language import phrase, phrases
from ..core.tensor import Tensor
from ..quant.low_rank import ROWS, rank_of_update
from .same_model import block_of
from .weight_cases import NEAR, SAMPLE, UNEXPLAINED, UNSEARCHED, Case, Cause, Search, case_of, rows_cause
from .weight_errors import Compared, is_scaled
from .weight_limits import typical_slope
from .weight_rows import Pair, alike, as_stored, column, rows_of, search


def cause_of(pair: Pair, compared: Compared, where: Search, *, thorough: bool) -> Cause:
    """The first explanation that fits; ``thorough``: whole tensors may be searched for the rows."""
    case = case_of(pair, compared, where, thorough=thorough)
    for explain in _EXPLANATIONS:
        cause = explain(case)
        if cause is not None:
            return cause
    return _unexplained(case)


def _not_finite(case: Case) -> Cause | None:
    count = case.compared.not_finite
    if not count:
        return None
    return Cause(
        ("not finite",),
        phrase("{weights} weights of {name} are NaN or infinite, but not in the checkpoint").of(
            weights=count
        ),
        phrase("{count} tensors have NaN or infinite weights that are finite in the checkpoint: {names}"),
    )


def _same_numbers(case: Case) -> Cause | None:
    if case.compared.own is None or case.compared.different:
        return None
    return Cause(
        ("same numbers",),
        phrase("{name} has the same numbers in other bytes, so they were not written by kconv"),
        phrase(
            "{count} tensors have the same numbers in other bytes, so they were not written by kconv: {names}"
        ),
    )


def _zeros(case: Case) -> Cause | None:
    if case.compared.stored.stored == 0:
        return Cause(
            ("zeros",), phrase("{name} is all zeros"), phrase("{count} tensors are all zeros: {names}")
        )
    zero = case.compared.zero
    if not zero.count or zero.count < case.bad.count:
        return None
    return rows_cause(
        zero,
        phrase("row {first} of {name} is all zeros"),
        phrase("{rows} rows of {name}, from row {first} to {last}, are all zeros"),
        phrase("rows of {count} tensors are all zeros: {names}"),
    )


def _ones(case: Case) -> Cause | None:
    same = case.mostly and (case.sample == 1).all()
    one, several = phrase("{name} is all ones"), phrase("{count} tensors are all ones: {names}")
    return Cause(("ones",), one, several) if same else None


def _not_permuted(case: Case) -> Cause | None:
    raw = case.where.originals.get(case.pair.info.name)
    if raw is None or raw.shape != case.pair.info.shape or not case.matches(rows_of(raw, case.rows)):
        return None
    why = phrase("rows are in another order: attention heads are not permuted as llama.cpp requires")
    several = phrase("{count} tensors: {why} ({names})").of(why=why)
    return Cause(("order",), phrase("{name}: {why}").of(why=why), several)


def _scaled(case: Case) -> Cause | None:
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
    by = f"{factor:.4f}"
    several = phrase("{count} tensors are scaled by {factor}: {names}").of(factor=by)
    return Cause(("scaled", by), phrase("{name} is scaled by {factor}").of(factor=by), several)


def _another_tensor(case: Case) -> Cause | None:
    if not case.mostly or not case.thorough:
        return None
    name = case.pair.info.name
    for tensor in _alternatives(case):
        if case.matches(rows_of(tensor, case.rows)):
            here, there = block_of(name), block_of(tensor.name)
            one = phrase("{name} contains {other} of the checkpoint").of(other=tensor.name)
            if here == there:
                return Cause(("another", name, tensor.name), one, one)
            several = phrase(
                "{count} tensors contain the weights of other tensors of the checkpoint: {names}"
            )
            if here is not None and there is not None:
                places = [
                    phrase("layer {layer}").of(layer=place) if isinstance(place, int) else place
                    for place in (here, there)
                ]
                several = phrase("{here} contains the weights of {there} of the checkpoint: {names}")
                several = several.of(here=places[0], there=places[1])
            return Cause(("another", here, there), one, several)
    return None


def _alternatives(case: Case) -> Iterator[Tensor]:
    """Other tensors of the shape; those of the same kind in other layers first."""
    name = case.pair.info.name
    kind = name.rsplit(".", 2)[-2:]
    others = [t for t in case.where.model.tensors if t.shape == case.pair.info.shape and t.name != name]
    yield from sorted(others, key=lambda tensor: tensor.name.rsplit(".", 2)[-2:] != kind)


def _rounded(case: Case) -> Cause | None:
    """Float weights that went through a shorter float on the way."""
    if case.pair.format.quantized:
        return None
    for short in ("f16", "bf16"):
        if np.array_equal(case.sample, as_stored(case.original, short, case.pair.format.name)):
            one = phrase("the weights of {name} were rounded to {format} on the way")
            several = phrase("the weights of {count} tensors were rounded to {format} on the way: {names}")
            return Cause(("rounded", short), one.of(format=short.upper()), several.of(format=short.upper()))
    return None


def _shifted(case: Case) -> Cause | None:
    """The same rows, some places away."""
    if len(case.pair.info.shape) != 2:
        return None
    for shift in sorted(range(-NEAR, NEAR + 1), key=abs):
        places = [row - shift for row in case.rows]
        if shift == 0 or min(places) < 0 or max(places) >= case.count:
            continue
        if case.matches(rows_of(case.pair.tensor, places)):
            first = case.bad.first
            if case.bad.count == 1:
                text = phrase("row {first} of {name} is row {row} of the checkpoint").of(row=first - shift)
            else:
                text = phrase(
                    "the rows of {name} are shifted by {distance} from row {first} to {last} "
                    "(row {row} is row {place} of the checkpoint)"
                )
                if case.bad.last == case.count - 1:
                    text = phrase(
                        "the rows of {name} are shifted by {distance} from row {first} on "
                        "(row {row} is row {place} of the checkpoint)"
                    )
                distance = phrase("one") if abs(shift) == 1 else str(abs(shift))
                text = text.of(distance=distance, last=case.bad.last, row=case.rows[0], place=places[0])
            several = phrase("the rows of {count} tensors are shifted: {names}")
            return Cause(("shifted", first, shift), text.of(first=first), several)
    return None


def _rolled(case: Case) -> Cause | None:
    for shift in sorted(range(-SAMPLE, SAMPLE + 1), key=abs):
        if shift and case.matches(np.roll(case.original, shift, axis=1)):
            by = phrases("{count} column", "{count} columns", abs(shift))
            return rows_cause(
                case.bad,
                phrase("row {first} of {name} is shifted by {columns}").of(columns=by),
                phrase("{rows} rows of {name}, from row {first} to {last}, are shifted by {columns}").of(
                    columns=by
                ),
                phrase("rows of {count} tensors are shifted by {columns}: {names}").of(columns=by),
            )
    return None


def _transposed(case: Case) -> Cause | None:
    shape = case.pair.info.shape
    if not (case.mostly and case.thorough and len(shape) == 2 and shape[0] == shape[1]):
        return None
    if not case.matches(column(case.pair.tensor, case.rows)):
        return None
    return Cause(
        ("transposed",), phrase("{name} is transposed"), phrase("{count} tensors are transposed: {names}")
    )


def _reordered(case: Case) -> Cause | None:
    """The same rows, in places that follow no rule known here."""
    if not case.thorough or len(case.pair.info.shape) != 2:
        return None
    chosen = case.rows[: SAMPLE // 2]
    places = search(case.pair.tensor, case.sample[: len(chosen)])
    if not _at_places(case, places):
        return None
    pairs = [(row, place) for row, place in zip(chosen, places, strict=True) if row != place]
    if not pairs:
        return None
    row, place = pairs[0]
    if case.bad.count <= SAMPLE:
        return rows_cause(
            case.bad,
            phrase("row {first} of {name} is row {row} of the checkpoint").of(row=place),
            phrase(
                "{rows} rows of {name}, from row {first} to {last}, are other rows of the checkpoint "
                "(row {row} is row {place})"
            ).of(row=row, place=place),
            phrase("rows of {count} tensors are other rows of the checkpoint: {names}"),
        )
    return Cause(
        ("reordered",),
        phrase("the rows of {name} are in another order (row {row} is row {place} of the checkpoint)").of(
            row=row, place=place
        ),
        phrase("the rows of {count} tensors are in another order: {names}"),
    )


def _at_places(case: Case, places: Sequence[int]) -> bool:
    """Whether the first rows of the sample are those of these places."""
    return alike(case.sample[: len(places)], rows_of(case.pair.tensor, places), case.error)


def _unexplained(case: Case) -> Cause:
    diff = case.compared
    error = phrase("relative error {error:.3g}")
    if case.pair.format.quantized:
        error = phrase("relative error {error:.3g}, {usual:.3g} is usual for {format}")
    error = error.of(error=diff.stored.error, usual=case.error, format=case.pair.format.display)
    if case.bad.count and not case.mostly:
        one = phrase("row {first} of {name} differs ({error})").of(error=error)
        some = phrase("{rows} rows of {name}, from row {first} to {last}, differ ({error})").of(error=error)
        rows = rows_cause(case.bad, one, some, phrase("some rows of {count} tensors differ: {names}"))
        return replace(rows, key=("some rows",))
    if not case.thorough:
        return Cause(
            UNSEARCHED, phrase("{name} also differs"), phrase("{count} tensors also differ: {names}")
        )
    share = phrase("differs throughout")
    if diff.different:
        share = phrase("{different} of {weights} weights differ")
        share = share.of(different=diff.different, weights=diff.weights)
    first = ""
    if diff.first is not None:
        first = phrase("; the first at row {row}, column {column}")
        first = first.of(row=diff.first[0], column=diff.first[1])
    return Cause(
        UNEXPLAINED,
        phrase("{name} does not match the checkpoint: {share} ({error}){first}").of(
            share=share, error=error, first=first
        ),
        phrase(
            "{count} tensors do not match the checkpoint, perhaps from another revision or a fine-tune: "
            "{names}"
        ),
    )


def _adapted(case: Case) -> Cause | None:
    if not (case.mostly and case.thorough and len(case.pair.info.shape) == 2):
        return None
    rows = range(0, case.count, max(1, case.count // ROWS))
    stored = rows_of(case.where.file.tensor(case.pair.info), rows)
    rank = rank_of_update(stored, rows_of(case.pair.tensor, rows), case.error)
    one = phrase("{name} is changed by an update of low rank, as merging a LoRA adapter does (rank {rank})")
    several = phrase(
        "{count} tensors are changed by an update of low rank, as merging a LoRA adapter does: {names}"
    )
    return None if rank is None else Cause(("low rank",), one.of(rank=rank), several)


_EXPLANATIONS: tuple[Callable[[Case], Cause | None], ...] = (
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
