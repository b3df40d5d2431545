"""Tensor formats: what ggml calls types, by name, with the size of their blocks.

A row of a quantized tensor is a sequence of blocks; ``block_size`` neighbouring weights of one row share
``block_bytes`` bytes. Sizes and numbers: ggml.h (enum ggml_type) and ggml.c (type_traits).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..core.errors import UsageError


@dataclass(frozen=True)
class Format:
    """How the weights of one tensor are stored.

    ``name`` is ggml's own spelling (``q4_0``, ``q6_K``), ``ggml_type`` the number in a GGUF's tensor table.
    """

    name: str
    ggml_type: int
    block_size: int
    block_bytes: int

    @property
    def display(self) -> str:
        """The name as llama.cpp puts it into file names: ``F16``, ``Q8_0``, ``Q6_K``."""
        return self.name.upper()

    @property
    def quantized(self) -> bool:
        """Whether several weights share a scale."""
        return self.block_size > 1

    def fits(self, columns: int) -> bool:
        """Whether rows of ``columns`` weights are whole blocks."""
        return columns % self.block_size == 0

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of ``columns`` weights. Raises UsageError if they are not whole blocks."""
        if not self.fits(columns):
            raise UsageError(
                f"a row of {columns} weights cannot be {self.display}: its blocks hold {self.block_size}"
            )
        return columns // self.block_size * self.block_bytes

    def tensor_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of ``shape`` (PyTorch order, the last axis is the row)."""
        size = self.row_bytes(shape[-1] if shape else 1)
        for length in shape[:-1]:
            size *= length
        return size


def _table(*formats: Format) -> Mapping[str, Format]:
    return MappingProxyType({format.name: format for format in formats})


# Every type a GGUF of today may hold, in ggml's order. kconv writes some of them and reads all.
FORMATS: Mapping[str, Format] = _table(
    Format("f32", 0, 1, 4),
    Format("f16", 1, 1, 2),
    Format("q4_0", 2, 32, 18),
    Format("q4_1", 3, 32, 20),
    Format("q5_0", 6, 32, 22),
    Format("q5_1", 7, 32, 24),
    Format("q8_0", 8, 32, 34),
    Format("q8_1", 9, 32, 36),
    Format("q2_K", 10, 256, 84),
    Format("q3_K", 11, 256, 110),
    Format("q4_K", 12, 256, 144),
    Format("q5_K", 13, 256, 176),
    Format("q6_K", 14, 256, 210),
    Format("q8_K", 15, 256, 292),
    Format("iq2_xxs", 16, 256, 66),
    Format("iq2_xs", 17, 256, 74),
    Format("iq3_xxs", 18, 256, 98),
    Format("iq1_s", 19, 256, 50),
    Format("iq4_nl", 20, 32, 18),
    Format("iq3_s", 21, 256, 110),
    Format("iq2_s", 22, 256, 82),
    Format("iq4_xs", 23, 256, 136),
    Format("i8", 24, 1, 1),
    Format("i16", 25, 1, 2),
    Format("i32", 26, 1, 4),
    Format("i64", 27, 1, 8),
    Format("f64", 28, 1, 8),
    Format("iq1_m", 29, 256, 56),
    Format("bf16", 30, 1, 2),
    Format("tq1_0", 34, 256, 54),
    Format("tq2_0", 35, 256, 66),
    Format("mxfp4", 39, 32, 17),
    Format("nvfp4", 40, 64, 36),
    Format("q1_0", 41, 128, 18),
    Format("q2_0", 42, 64, 18),
)

F32 = FORMATS["f32"]
F16 = FORMATS["f16"]
BF16 = FORMATS["bf16"]
Q8_0 = FORMATS["q8_0"]
Q6_K = FORMATS["q6_K"]

# The formats kconv can encode weights in.
ENCODABLE: tuple[Format, ...] = tuple(
    FORMATS[name] for name in ("f32", "f16", "bf16", "q8_0", "q6_K", "q5_1", "q5_0", "q4_1", "q4_0")
)

_BY_LOWER_NAME = {format.name.lower(): format for format in ENCODABLE}
_BY_TYPE = {format.ggml_type: format for format in FORMATS.values()}


def parse_format(text: str) -> Format:
    """The format of that name, case ignored. Raises UsageError naming all formats kconv encodes."""
    format = _BY_LOWER_NAME.get(text.strip().lower())
    if format is None:
        names = ", ".join(format.name for format in ENCODABLE)
        raise UsageError(f"unknown format {text!r}", hint=f"choose one of {names}")
    return format


def format_of_type(ggml_type: int) -> Format | None:
    """The format of a GGUF's type number; None for numbers ggml has retired or does not know yet."""
    return _BY_TYPE.get(ggml_type)
