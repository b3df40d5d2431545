"""A choice of formats as a file: what every matrix gets, and what each would lose in every format.

TOML, to be read and changed by people. It fits every model of the same architecture and shapes, so a
fine-tune needs no probes of its own; other sizes can be chosen from it without any.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import InputError, UsageError
from ..core.gguf_file import shown
from ..core.input_files import quoted
from ..core.text_files import read_text
from .formats import FORMATS, Format, parse_format

_VERSION = 1
_ENDING = ".policy.toml"
_HINT = "expected a policy file that kconv to-gguf --target-size has written"


@dataclass(frozen=True)
class Choice:
    """The format of every matrix that was chosen, by the names of a GGUF, and what is known of it.

    ``label`` is the target (``4.5G``); ``predicted`` the mean divergence in nats it was measured or estimated
    to have on the calibration text; ``losses`` each tensor's share of it in every format, in nats, which add
    up. ``measured`` says on what: number of tokens, SHA-256 of the texts, the format of the probes.
    """

    label: str
    arch: str
    formats: Mapping[str, Format]
    predicted: float
    losses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def to_toml(self) -> str:
        """The file's text."""
        lines = [
            "# Which format each matrix is stored in, chosen by kconv from measured losses (target-size.md).",
            "# kconv to-gguf CHECKPOINT --policy THIS-FILE makes the same of a fine-tune of the same model.",
            f"kconv_policy = {_VERSION}",
            f"target = {_text(self.label)}",
            f"architecture = {_text(self.arch)}",
            f"predicted_kl = {_number(self.predicted)}  # mean, in nats, on the calibration text",
            "",
            "[measured]",
            *(f"{key} = {_value(value)}" for key, value in self.measured.items()),
            "",
            "[formats]",
            *(f"{_text(name)} = {_text(format.name)}" for name, format in self.formats.items()),
            "",
            "[losses]  # of each tensor in each format; they add up",
        ]
        for name, losses in self.losses.items():
            pairs = ", ".join(f"{each} = {_number(loss)}" for each, loss in losses.items())
            lines.append(f"{_text(name)} = {{ {pairs} }}")
        return "\n".join(lines) + "\n"

    def to_manifest(self) -> dict[str, Any]:
        """What a manifest says of it; the formats stand there anyway."""
        return {
            "target": self.label,
            "predicted_kl": _rounded(self.predicted),
            "measured": dict(self.measured),
        }


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=True)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    return (
        _text(value) if isinstance(value, str) else _number(value) if isinstance(value, float) else str(value)
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _number(value: float) -> str:
    if math.isinf(value):
        return "inf"
    text = f"{value:.4g}"
    return text if any(sign in text for sign in ".en") else f"{text}.0"


def policy_label(path: str | Path) -> str:
    """What a file of that policy is called: the name of the policy's without ``.policy.toml``."""
    name = Path(path).name
    return name.removesuffix(_ENDING).removesuffix(".toml") or "policy"


def read_choice(path: str | Path) -> Choice:
    """A policy file. Raises InputError naming what is wrong with it, and what reading it raises."""
    path = Path(path)
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
    except InputError as error:  # which speaks of texts
        raise InputError(f"policy file: {error.message}", hint=_HINT) from error
    except (ValueError, RecursionError) as error:  # ValueError: also integers of more than 4,300 digits
        raise InputError(f"{path}: not a policy file: {error}", hint=_HINT) from error
    if "kconv_policy" not in values:
        gates = "; this one holds limits for kconv verify" if {"gates", "max_kl"} & set(values) else ""
        raise InputError(f"{path}: not a policy file of formats: it has no kconv_policy", hint=_HINT + gates)
    if values["kconv_policy"] != _VERSION or values["kconv_policy"] is True:
        raise InputError(
            f"{path}: kconv_policy is {quoted(values['kconv_policy'])}, and this kconv reads {_VERSION}",
            hint="use the version of kconv that wrote it, or newer",
        )
    formats = {name: _format(path, name, value) for name, value in _table(path, values, "formats").items()}
    if not formats:
        raise InputError(f"{path}: [formats] names no tensor", hint=_HINT)
    losses = {name: _losses(path, name, each) for name, each in _table(path, values, "losses").items()}
    arch, label = values.get("architecture"), values.get("target")
    predicted = values.get("predicted_kl")
    if not isinstance(arch, str) or not isinstance(label, str):
        raise InputError(f"{path}: architecture and target are expected to be text", hint=_HINT)
    measured = _table(path, values, "measured")
    if strange := [key for key, value in measured.items() if not _plain(value)]:
        raise InputError(
            f"{path}: measured.{shown(strange[0])} is no number, text or list of these", hint=_HINT
        )
    return Choice(label, arch, formats, _amount(path, "predicted_kl", predicted), losses, measured)


def _table(path: Path, values: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = values.get(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{path}: {key} is {quoted(found)}, expected a table", hint=_HINT)
    return found


def _format(path: Path, name: str, value: Any) -> Format:
    try:
        return parse_format(value if isinstance(value, str) else "")
    except UsageError as error:
        message = f"{path}: {shown(name)} = {quoted(value)} is no format kconv writes"
        raise InputError(message, hint=error.hint) from error


def _losses(path: Path, name: str, value: Any) -> dict[str, float]:
    if not isinstance(value, dict) or not value:
        raise InputError(f"{path}: losses of {shown(name)}: {quoted(value)}, expected a table", hint=_HINT)
    if strange := [each for each in value if each not in FORMATS]:
        raise InputError(
            f"{path}: losses of {shown(name)} name {quoted(strange[0])}, which is no format", hint=_HINT
        )
    return {each: _amount(path, f"losses.{name}.{each}", loss) for each, loss in value.items()}


def _plain(value: Any) -> bool:
    """Whether a manifest can say it: no dates, which TOML has and JSON has not."""
    if isinstance(value, list):
        return all(isinstance(each, str | int | float) for each in value)
    return isinstance(value, str | int | float)


def _amount(path: Path, key: str, value: Any) -> float:
    if not isinstance(value, bool) and isinstance(value, int | float) and value >= 0:
        with suppress(OverflowError):  # TOML's integers have any number of digits
            return float(value)
    raise InputError(f"{path}: {shown(key)} is {quoted(value)}, expected a number of nats", hint=_HINT)
