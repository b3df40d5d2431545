"""A policy file: how much a file may lose before its proof fails, as teams keep it for their CI."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.input_files import quoted
from ..core.text_files import read_text
from ..verify.gates import known_type, positive

_KEYS = ("max_kl", "gates")
_EXAMPLE = "a TOML file such as: max_kl = 0.1 and below it [gates] with lines such as q4_0 = 0.2"


def read_policy(path: Path) -> tuple[dict[str, float], float | None]:
    """The gates by type of a policy file, and the mean divergence no file may exceed.

    Raises InputError naming the file and the key that is wrong, UsageError for types without a gate and for
    limits that are not positive numbers.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # ValueError: also integers of more than 4,300 digits
        raise InputError(f"{path}: not a policy file: {error}", hint=f"expected {_EXAMPLE}") from error
    for key in values:
        if key not in _KEYS:
            raise InputError(f"{path}: unknown key {quoted(key)}", hint=f"expected {_EXAMPLE}")
    gates = values.get("gates", {})
    if not isinstance(gates, dict):
        raise InputError(f"{path}: gates is {quoted(gates)}", hint=f"expected {_EXAMPLE}")
    limits = {known_type(name): _number(path, name, value) for name, value in gates.items()}
    return limits, _number(path, "max_kl", values["max_kl"]) if "max_kl" in values else None


def _number(path: Path, key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{path}: {key} is {quoted(value)}, expected a positive number")
    try:
        number = float(value)
    except OverflowError:  # TOML's integers have any number of digits
        raise InputError(f"{path}: {key} is {quoted(value)}, expected a positive number") from None
    return positive(number, f"{key}={value}")
