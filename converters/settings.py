"""Reading numbers out of a configuration file that may say anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import CheckpointError
from ..core.input_files import quoted

_LARGEST = 2**31 - 1
_REALS = (2.0**-126, 2.0**127)  # what GGUF keeps in float32, without the denormal numbers


@dataclass(frozen=True)
class Settings:
    """A JSON object with typed access; every refusal is a CheckpointError that names the key."""

    values: Mapping[str, Any]
    where: str

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number of at least ``least``, that fits 31 bits."""
        value = self.values.get(key)
        value = default if value is None else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
            raise self.refuse(key, value, f"a whole number from {least} to {_LARGEST}")
        return value

    def either(self, key: str, other: str, default: int | None = None) -> int:
        """A whole number under the family's own name of it or the one all of transformers' models know.

        transformers reads both; two different ones are refused, since nothing says which is meant.
        """
        if key in self and other in self and self.integer(key) != self.integer(other):
            raise self.refuse(other, self.values[other], f"{self.integer(key)}, as {key} says")
        return self.integer(other if key not in self and other in self else key, default)

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number within the range of float32."""
        value = self.values.get(key)
        value = default if value is None else value
        least, largest = _REALS
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= largest:
            raise self.refuse(key, value, "a positive number (of float32)")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.refuse(key, value, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A string."""
        value = self.values.get(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.refuse(key, value, "a string")
        return value

    def section(self, key: str) -> Settings | None:
        """A nested object, or None where it is missing or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.refuse(key, value, "an object")
        return Settings(value, f"{self.where}: {key}")

    def refuse(self, key: str, value: object, expected: str) -> CheckpointError:
        """The error for a value that cannot be right."""
        actual = "missing" if value is None else quoted(value)
        return CheckpointError(
            f"{self.where}: {key} is {actual}, expected {expected}",
            hint="compare the file with the published one",
        )
