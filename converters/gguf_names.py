"""llama.cpp's own names for a checkpoint's tensors: its converter's tables, from the gguf package."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any

_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_SUFFIXES = (".weight", ".bias")


def names_in_gguf(arch: str, layers: int, names: Iterable[str]) -> dict[str, str]:
    """By a checkpoint's names those llama.cpp has for the same in its graph ``arch``; the rest is left out.

    The matrices of a layer's experts, which lie one by one in a checkpoint, all have the name of their stack.
    """
    table = _table(arch, layers)
    told: dict[str, str] = {}
    for name in names:
        one = _EXPERT.sub(".experts.", re.sub(r"_bias\Z", ".bias", name))
        found = table.get_name(one, try_suffixes=_SUFFIXES)
        if found is not None:
            told[name] = found if found.endswith(_SUFFIXES) else f"{found}.weight"
    return told


# What converters take apart, by the word in a checkpoint's names or in llama.cpp's own.
_PARTS = (
    ("gate_up_proj", ("gate_proj", "up_proj")),
    ("kv_b_proj", ("k_b_proj", "v_b_proj")),
    ("qkv_proj", ("q_proj", "k_proj", "v_proj")),
    ("block_sparse_moe.input_linear", ("mlp.experts.gate_proj", "mlp.experts.up_proj")),  # Granite
)
_PARTS_IN_GGUF = (
    ("attn_qkv", ("attn_q", "attn_k", "attn_v")),
    ("ffn_gate_up_exps", ("ffn_gate_exps", "ffn_up_exps")),
)


def names_of_parts(
    arch: str, layers: int, told: Mapping[str, str], names: Iterable[str]
) -> dict[str, dict[str, str]]:
    """By a checkpoint's names of fused tensors those of their parts in a GGUF, each with a name of its own.

    ``told`` is of ``names_in_gguf``. The own name is the whole's, but with the part in its place where that
    is multiplied by another input, or belongs to a stack of experts.
    """
    found: dict[str, dict[str, str]] = {}
    wanted: dict[str, list[str]] = {}
    for name in names:
        for whole, parts in _PARTS:
            if whole in name:
                wanted[name] = [name.replace(whole, part) for part in parts]
        for whole, parts in _PARTS_IN_GGUF:
            if f".{whole}." in told.get(name, "") and name not in wanted:
                found[name] = {told[name].replace(whole, part): name for part in parts}
    own = names_in_gguf(arch, layers, [part for parts in wanted.values() for part in parts])
    for name, pieces in wanted.items():
        if all(piece in own for piece in pieces):
            apart = any(".experts." in each or ".k_b_proj" in each for each in pieces)
            place = "block_sparse_moe." if "block_sparse_moe." in name else "mlp."
            found[name] = {own[piece]: piece.replace("mlp.", place) if apart else name for piece in pieces}
    return found


def _table(arch: str, layers: int) -> Any:
    """The table of an architecture, of no names where the package does not know it.

    The package adds an architecture's own names to tables that all share, so each look-up has its copies.
    """
    import gguf

    archs = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if arch not in archs:
        return _Nameless()
    tables = ("mappings_cfg", "block_mappings_cfg", "arch_block_mappings_cfg")
    own: Mapping[str, Any] = {name: copy.deepcopy(getattr(gguf.TensorNameMap, name)) for name in tables}
    return type("OwnNames", (gguf.TensorNameMap,), dict(own))(archs[arch], layers)


class _Nameless:
    def get_name(self, key: str, try_suffixes: tuple[str, ...] = ()) -> str | None:
        """None."""
        return None
