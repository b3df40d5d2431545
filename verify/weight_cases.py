"""A tensor that differs, some rows of it, and the sentences that say why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..core.language import Phrase
from ..core.model import Model
from ..core.tensor import Tensor
from ..quant.ggml import Floats
from ..quant.gguf_weights import GgufFile
from .weight_errors import Compared, MarkedRows
from .weight_limits import typical_error
from .weight_rows import Pair, alike, rows_of

# Rows looked at, and how far a row is looked for in the neighbourhood of its place.
SAMPLE = 8
NEAR = 32

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
    one: Phrase
    several: Phrase


@dataclass(frozen=True)
class Case:
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


def case_of(pair: Pair, compared: Compared, where: Search, *, thorough: bool) -> Case:
    bad = next((rows for rows in (compared.far, compared.worse) if rows.count), compared.changed)
    # Some neighbours and some far apart: a rule that fits only every other row is none.
    near, rest = bad.examples[: SAMPLE // 2], bad.examples[SAMPLE // 2 :]
    rows = (*near, *rest[:: -(-len(rest) // (SAMPLE // 2)) or 1]) or (0,)
    own = compared.own.error if compared.own is not None else typical_error(pair.format)
    sample = rows_of(where.file.tensor(pair.info), rows)
    return Case(pair, compared, bad, rows, sample, rows_of(pair.tensor, rows), own, where, thorough)


def rows_cause(rows: MarkedRows, one: Phrase, some: Phrase, several: Phrase) -> Cause:
    """Something about one or some rows of a tensor, or of several tensors."""
    text = (one if rows.count == 1 else some).of(rows=rows.count, first=rows.first, last=rows.last)
    return Cause((several, rows.first, rows.last), text, several)
