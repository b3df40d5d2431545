"""A tensor that has not been read yet."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Reader = Callable[[int, int], Array]


class DType(Enum):
    """Storage types a checkpoint's weights may have. The value is safetensors' name of the type."""

    F32 = "F32"
    F16 = "F16"
    BF16 = "BF16"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 4 if self is DType.F32 else 2

    @property
    def storage(self) -> np.dtype[Any]:
        """The numpy type that carries the bits; numpy has no bfloat16, so BF16 travels as uint16."""
        return np.dtype({DType.F32: "<f4", DType.F16: "<f2", DType.BF16: "<u2"}[self])


@dataclass(frozen=True)
class StoredBytes:
    """A tensor's bytes as a GGUF file holds them: ``ggml_type``, and rows ``start..stop`` as bytes."""

    ggml_type: int
    read: Reader


@dataclass(frozen=True)
class Tensor:
    """A lazy tensor: known shape and type, and a way to read some of its rows.

    ``shape`` is in PyTorch order, slowest axis first. ``read(start, stop)`` returns rows
    ``start..stop`` of the first axis as an array of ``(stop - start, *shape[1:])`` in
    ``dtype.storage``; it touches no other rows (of a permuted tensor: no other heads) and is safe to
    call from several threads. Slabs whose bounds are multiples of ``granule`` rows are read without
    waste. ``origin`` says where the data lies, for error messages; ``computed`` that it lies in no file of
    the checkpoint but follows from the configuration. ``stored`` is there where the weights are decoded
    from what a file holds; in the same format they are copied. ``held_as`` is the 8-bit float the weights
    lie in the checkpoint as (``F8_E4M3``), where ``read`` has widened them to F32; else empty.
    """

    name: str
    shape: tuple[int, ...]
    dtype: DType
    read: Reader
    granule: int = 1
    origin: str = ""
    computed: bool = False
    stored: StoredBytes | None = None
    held_as: str = ""

    @property
    def rows(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    @property
    def row_elements(self) -> int:
        """Elements in one row; 1 for a vector."""
        return math.prod(self.shape[1:])

    @property
    def elements(self) -> int:
        """Elements in all."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the checkpoint."""
        return self.elements * (1 if self.held_as else self.dtype.itemsize)
