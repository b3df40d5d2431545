"""From the rows of a tensor to the bytes of its formats: the one way the writers and the proof take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.tensor import Array, DType, Tensor
from .formats import Format
from .ggml import Floats
from .importance import Importance, values_of
from .native import Kernels
from .slabs import Scratch, Slab, convert_slab

if TYPE_CHECKING:
    from .optimize import Choosers


@dataclass(frozen=True)
class Encoder:
    """Encodes the rows of one tensor in each of ``formats``, from one look at the weights.

    ``statistics`` say what flows into the tensor, float32 ``(columns,)`` mean squares, for a stack of
    matrices ``(matrices * columns,)``: they weigh the columns in every quantized format. ``choosers`` choose
    codes anew by how inputs correlate, where that is known. ``kernels``: this machine's, those of another
    instruction set, or none, where a proof should not rest on what it proves.
    """

    formats: Sequence[Format]
    statistics: Floats | None = None
    kernels: Kernels = "chosen"
    choosers: Choosers | None = None

    def encode(self, rows: Array, dtype: DType, scratch: Scratch, first: int = 0) -> Slab:
        """``rows`` (rows, …, columns) of the tensor from row ``first`` on, in ``dtype.storage``, encoded.

        ``scratch`` is the thread's own memory, which the result lies in. Raises UsageError for columns that
        are not whole blocks of a format.
        """
        slab = convert_slab(
            rows, dtype, self.formats, scratch, self.importance_of(rows, first), kernels=self.kernels
        )
        if self.choosers is not None and slab.finite:
            sound = [
                (format, data)
                for format, data in zip(self.formats, slab.data, strict=True)
                if format not in slab.overflowed and format not in slab.impossible
            ]
            self.choosers.choose_all(sound, rows, dtype, first, self.kernels)
        return slab

    def importance_of(self, rows: Array, first: int) -> Floats | None:
        """The statistics of these rows: of a stack those of its matrices ``first`` and following."""
        if self.statistics is None or rows.ndim != 3:
            return self.statistics
        columns = rows.shape[-1]
        return self.statistics[first * columns : (first + len(rows)) * columns]


def encoder_of(
    tensor: Tensor, formats: Sequence[Format], importance: Importance | None, *, kernels: Kernels = "chosen"
) -> Encoder:
    """The encoder of a tensor, with what is known of it; InputError where that is of another model."""
    optimization = None if importance is None else importance.optimization
    choosers = None if optimization is None else optimization.choosers(tensor)
    return Encoder(formats, values_of(tensor, importance), kernels, choosers)
