"""What plan and compare end with: the type to take, why, and the command that makes it."""

from __future__ import annotations

import shlex
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.language import _, translated
from .console import say

if TYPE_CHECKING:
    from ..converters.results import Options
    from ..flows.recommendation import Recommendation

_NAMES = {"disabled_adapters": "--no-adapter", "tensor_types": "--tensor-type"}
_NEVER = ("types", "verify")


def command_of(source: str | Path, options: Options, type_name: str) -> str:
    """The command that makes ``type_name`` of ``source`` as ``options`` say."""
    words = ["kconv", "to-gguf", str(source), "-q", type_name]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _NEVER or value == field.default:
            continue
        option = _NAMES.get(field.name, "--" + field.name.replace("_", "-"))
        values = value if isinstance(value, tuple) else (value,)
        words += [word for each in values for word in ([option] if each is True else [option, str(each)])]
    return shlex.join(words)


def say_recommended(chosen: Recommendation, command: str | None) -> None:
    """Two lines: what and why, and how."""
    reason = translated(chosen.reason)
    if chosen.type is None:
        say(_("recommended: none: {reason}", reason=reason))
        return
    say(_("recommended: {type}: {reason}", type=chosen.type, reason=reason))
    if command is not None:
        say(f"  {command}")


def recommended_json(chosen: Recommendation, command: str | None) -> dict[str, Any]:
    """The same for programs."""
    return {**chosen.to_json(), "command": None if chosen.type is None else command}
