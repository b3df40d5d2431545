"""Tensor formats: what ggml calls types, by name, with the size of their blocks.

A row of a quantized tensor is a sequence of blocks; ``block_size`` neighbouring weights of one row share
``block_bytes`` bytes. Sizes and numbers: ggml.h (enum ggml_type) and ggml.c (type_traits).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from ..core.errors import UsageError
from ..core.gguf_file import BLOCKS


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
                f"a row of {columns} weights cannot be stored as {self.display}, whose blocks have "
                f"{self.block_size}"
            )
        return columns // self.block_size * self.block_bytes

    def tensor_bytes(self, shape: Sequence[int]) -> int:
        """Bytes of a tensor of ``shape`` (PyTorch order, the last axis is the row)."""
        size = self.row_bytes(shape[-1] if shape else 1)
        for length in shape[:-1]:
            size *= length
        return size


# ggml's type numbers (ggml.h, enum ggml_type). kconv writes some of these formats and reads all.
_TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q8_1": 9, "q2_K": 10,
    "q3_K": 11, "q4_K": 12, "q5_K": 13, "q6_K": 14, "q8_K": 15, "iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18,
    "iq1_s": 19, "iq4_nl": 20, "iq3_s": 21, "iq2_s": 22, "iq4_xs": 23, "i8": 24, "i16": 25, "i32": 26,
    "i64": 27, "f64": 28, "iq1_m": 29, "bf16": 30, "tq1_0": 34, "tq2_0": 35, "mxfp4": 39, "nvfp4": 40,
    "q1_0": 41, "q2_0": 42,
}  # fmt: skip

FORMATS: Mapping[str, Format] = MappingProxyType(
    {name: Format(name, number, *BLOCKS[number]) for name, number in _TYPES.items()}
)

F32 = FORMATS["f32"]
F16 = FORMATS["f16"]
BF16 = FORMATS["bf16"]
Q8_0 = FORMATS["q8_0"]
Q6_K = FORMATS["q6_K"]

# The formats kconv can encode weights in: all of ggml's but those for activations and whole numbers.
ENCODABLE: tuple[Format, ...] = tuple(
    FORMATS[name]
    for name in (
        "f32", "f16", "bf16", "q8_0", "q6_K", "q5_K", "q5_1", "q5_0", "q4_K", "q4_1", "q4_0", "q3_K", "q2_K",
        "q2_0", "q1_0", "iq4_nl", "iq4_xs", "iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m",
        "iq1_s", "tq2_0", "tq1_0", "mxfp4", "nvfp4",
    )
)  # fmt: skip

# Formats libggml cannot encode without importance data (ggml.c, ggml_quantize_requires_imatrix).
NEEDS_IMPORTANCE: tuple[Format, ...] = tuple(FORMATS[name] for name in ("iq2_xxs", "iq2_xs", "iq1_s"))

# Formats of points on a grid. Their encoders abort the process where they find none, that is where sums of
# weights are NaN or beyond float32 (ggml-quants.c, iq2_find_best_neighbour and its kin).
GRIDS: tuple[Format, ...] = tuple(
    FORMATS[name] for name in ("iq3_s", "iq3_xxs", "iq2_s", "iq2_xs", "iq2_xxs", "iq1_m", "iq1_s")
)

# The formats libggml encodes anew, to hold a file against, without importance data and at more than 5 million
# weights a second. Of the others second_look.py says how much is encoded.
RECODABLE: tuple[Format, ...] = tuple(format for format in ENCODABLE if format not in GRIDS)

_BY_LOWER_NAME = {format.name.lower(): format for format in ENCODABLE}
_BY_TYPE = {format.ggml_type: format for format in FORMATS.values()}


def parse_format(text: str) -> Format:
    """The format of that name, case ignored. Raises UsageError naming all formats kconv encodes."""
    format = _BY_LOWER_NAME.get(text.strip().lower())
    if format is None:
        names = [format.name for format in ENCODABLE]
        raise UsageError(f"unknown format {text!r}", hint=nearest(text, names))
    return format


# What other tools and people call a type, without signs -> what it is here.
_USUAL_NAMES = {
    **dict.fromkeys(("2", "2bit", "int2", "q2", "iq2"), ("q2_k", "iq2_m")),
    **dict.fromkeys(("3", "3bit", "int3", "q3"), ("q3_k_m",)),
    **dict.fromkeys(("iq3",), ("iq3_m", "iq3_xxs")),
    **dict.fromkeys(
        ("4", "4bit", "int4", "q4", "w4a16", "u4", "nf4", "fp4", "gptq", "awq"), ("q4_0", "q4_k_m")
    ),
    **dict.fromkeys(("q4km", "4km", "q4kl", "q4kxl", "udq4kxl"), ("q4_k_m",)),  # others' own mixtures
    **dict.fromkeys(("q4ks", "4ks"), ("q4_k_s",)),
    **dict.fromkeys(("iq4",), ("iq4_xs", "iq4_nl")),
    **dict.fromkeys(("5", "5bit", "int5", "q5", "q5km", "q5kl", "q5kxl"), ("q5_k_m",)),
    **dict.fromkeys(("6", "6bit", "int6", "q6", "q6km"), ("q6_k",)),
    **dict.fromkeys(
        ("8", "8bit", "int8", "q8", "q8k", "q8km", "w8a8", "w8a16", "fp8", "f8", "bnb"), ("q8_0",)
    ),
    **dict.fromkeys(("16", "16bit", "fp16", "float16", "half", "torchfloat16"), ("f16",)),
    **dict.fromkeys(("bfloat16", "bfp16", "brainfloat", "torchbfloat16"), ("bf16",)),
    **dict.fromkeys(("32", "32bit", "fp32", "float32", "float", "full", "torchfloat32"), ("f32",)),
    **dict.fromkeys(("mxfp4",), ("mxfp4_moe",)),
}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def nearest(text: str, names: Sequence[str]) -> str:
    """A hint for a misspelt name: the one of ``names`` closest to ``text``, if any, and all of them."""
    found = suggested(text, names)
    guess = f"did you mean {' or '.join(found)}? " if found else ""
    return f"{guess}choose one of {', '.join(names)}"


def suggested(text: str, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that ``text`` may mean: by what others call them, else the closest one."""
    by_lower = {name.lower(): name for name in names}
    usual = [by_lower[name] for name in _USUAL_NAMES.get(_letters(text), ()) if name in by_lower]
    same = [name for name in names if _letters(name) == _letters(text)]
    if usual or same:
        return usual or same
    close = difflib.get_close_matches(text.strip().lower(), by_lower, n=1, cutoff=0.5)
    return [by_lower[each] for each in close]


def format_of_type(ggml_type: int) -> Format | None:
    """The format of a GGUF's type number; None for numbers ggml has retired or does not know yet."""
    return _BY_TYPE.get(ggml_type)
