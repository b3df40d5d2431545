"""What a format asks for: rows that are whole blocks, and importance data (src/llama-quant.cpp)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ..core.errors import InputError
from ..core.tensor import Tensor
from .formats import F16, FORMATS, NEEDS_IMPORTANCE, Format
from .importance import Importance
from .named_recipes import Policy
from .parts import HEAD, is_embedding

# What takes the place of a format whose blocks do not fit the rows (llama-quant.cpp, tensor_type_fallback).
# Formats of blocks of 32 have no smaller relative and become F16.
_SMALLER_BLOCKS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"
        ),
        **dict.fromkeys(("q2_0", "q2_K", "q3_K", "tq1_0", "tq2_0"), "q4_0"),
        "q4_K": "q5_0",
        "q5_K": "q5_1",
        "q6_K": "q8_0",
    }
)

# Formats llama.cpp refuses without importance data, and the one recipe it refuses q2_K in
# (tensor_requires_imatrix).
_REFUSED_WITHOUT = frozenset({"iq3_xxs", "iq2_xxs", "iq2_xs", "iq2_s", "iq1_m", "iq1_s"})
_REFUSED_RECIPE = ("q2_K_S", "q2_K")


def fitting(wanted: Format, columns: int, name: str = "a tensor") -> Format:
    """``wanted``, or what llama.cpp takes instead where rows of ``columns`` are not whole blocks of it.

    Raises InputError for the two formats of large blocks llama.cpp has nothing to take instead of.
    """
    if wanted.fits(columns):
        return wanted
    smaller = _SMALLER_BLOCKS.get(wanted.name)
    if smaller is None and wanted.block_size > 32:
        raise InputError(
            f"{name} has rows of {columns} weights, not a multiple of the block size "
            f"{wanted.block_size} of {wanted.display}, and llama.cpp has no fallback format for it",
            hint="choose another type, or set one for this tensor with --tensor-type",
        )
    return FORMATS[smaller] if smaller and FORMATS[smaller].fits(columns) else F16


def needs_importance(policy: Policy) -> bool:
    """Whether llama.cpp refuses the recipe without importance data, where all rows are whole blocks."""
    formats = {policy.default, *(rule.format for rule in policy.rules)}
    return policy.name == _REFUSED_RECIPE[0] or any(
        format is not None and format.name in _REFUSED_WITHOUT for format in formats
    )


def has_to_be_weighed(format: Format, name: str, recipe: str = "") -> bool:
    """Whether a tensor of that name can be in ``format``, in a recipe if any, with importance data alone."""
    refused = format.name in _REFUSED_WITHOUT or (recipe, format.name) == _REFUSED_RECIPE
    spared = is_embedding(name) or name == HEAD
    return format in NEEDS_IMPORTANCE or (refused and not spared)


def check_importance(tensor: Tensor, format: Format, policy: Policy, importance: Importance | None) -> None:
    """Refuse what llama.cpp refuses: data of another width, a format that needs data and has none."""
    if not format.quantized:
        return
    columns = tensor.shape[-1] * (tensor.rows if len(tensor.shape) > 2 else 1)
    if importance is not None and importance.of(tensor.name, columns) is not None:
        return
    if has_to_be_weighed(format, tensor.name, policy.name):
        which = "the data given do not cover it" if importance else "none was given"
        raise InputError(
            f"{policy.display} stores {tensor.name} as {format.display}, which needs importance data, but "
            f"{which}",
            hint="make some with kconv imatrix and pass --imatrix FILE, or pass --calibrate TEXT",
        )
