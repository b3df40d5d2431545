"""What a file may weigh or lose, where its formats are chosen by measured losses and not by a recipe."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from typing import Any, Literal

from ..core.errors import UsageError
from ..core.gguf_file import shown

_UNITS = {
    "": 1, "B": 1, "K": 10**3, "KB": 10**3, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30,
}  # fmt: skip
_SIZE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*([A-Z]*)")
_NO_FILE = 1000  # bytes no model fits in: without a unit, something else was meant
_EXAMPLES = "for example 4.5G, 4.2GiB, 900M or 4.25bpw (bits per weight)"


@dataclass(frozen=True)
class Wish:
    """One file whose formats are chosen: ``label`` is its type's name, ``4.5G``.

    ``value`` is the most it may weigh in bytes, or in bits per weight, or lose (mean divergence in nats); of
    a ``policy`` nothing is chosen, its file says what every tensor gets.
    """

    label: str
    kind: Literal["bytes", "bits", "divergence", "policy"]
    value: float = 0.0


@dataclass(frozen=True)
class Wanted:
    """What was asked for: sizes (``4.5G``, ``4.25bpw``), mean divergences, the formats to choose among.

    ``policy`` is a file of an earlier choice: to be taken as it is, or, with targets, its measured losses.
    """

    sizes: tuple[str, ...] = ()
    divergences: tuple[float, ...] = ()
    menu: tuple[str, ...] = ()
    policy: str | None = None

    def __bool__(self) -> bool:
        """Whether any file is asked for."""
        return bool(self.sizes or self.divergences or self.policy)

    @property
    def targets(self) -> bool:
        """Whether anything is to be chosen."""
        return bool(self.sizes or self.divergences)

    def wishes(self, policy_label: str = "policy") -> tuple[Wish, ...]:
        """One a file, each once. Raises UsageError for what is no size or divergence."""
        found = [parse_size(text) for text in self.sizes] + [_divergence(value) for value in self.divergences]
        if self.policy is not None and not found:
            found.append(Wish(policy_label, "policy"))
        return tuple(dict.fromkeys(found))

    def only(self, labels: Collection[str], policy_label: str = "policy") -> Wanted:
        """The same for those files alone whose wishes have these ``labels``."""
        sizes = tuple(text for text in self.sizes if parse_size(text).label in labels)
        divergences = tuple(value for value in self.divergences if _divergence(value).label in labels)
        if sizes or divergences:
            return replace(self, sizes=sizes, divergences=divergences)
        whole = not self.targets and policy_label in labels
        return Wanted(policy=self.policy if whole else None)

    def to_manifest(self) -> dict[str, Any]:
        """As plain values; of the file only its name."""
        name = None if self.policy is None else re.split(r"[\\/]", self.policy)[-1]
        return {
            "target_size": list(self.sizes),
            "target_kl": list(self.divergences),
            "menu": list(self.menu),
            "policy": name,
        }


def wanted(
    target_size: str | Sequence[str],
    target_kl: float | Sequence[float],
    menu: Sequence[str],
    policy: str | PathLike[str] | None,
) -> Wanted:
    """What these options ask for: one target or several."""
    sizes = (target_size,) if isinstance(target_size, str) else tuple(target_size)
    divergences = (target_kl,) if isinstance(target_kl, int | float) else tuple(target_kl)
    return Wanted(sizes, divergences, tuple(menu), None if policy is None else fspath(policy))


def parse_size(text: str) -> Wish:
    """A size or bits per weight: ``4.5G`` and ``4.5GB`` are powers of ten, ``4.5GiB`` of two; ``4.25bpw``.

    Raises UsageError.
    """
    match = _SIZE.fullmatch(text.strip().upper())
    number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    label = "".join(text.split())
    if number > 0 and unit == "BPW":
        return Wish(label, "bits", number)
    if 0 < number < _NO_FILE and not unit:
        raise UsageError(
            f"--target-size {shown(text)} has no unit",
            hint=f"write it as {label}bpw for bits per weight, or as {label}G for gigabytes",
        )
    if number > 0 and unit in _UNITS:
        return Wish(label, "bytes", math.floor(number * _UNITS[unit]))
    raise UsageError(f"--target-size {shown(text)} is not a size", hint=_EXAMPLES)


def _divergence(value: float) -> Wish:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(
            f"--target-kl {value} is not a positive number",
            hint="give a mean divergence in nats; 0.02 is little, 0.1 much",
        )
    return Wish(f"KL{value:g}", "divergence", value)
