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
