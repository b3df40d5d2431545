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
_NEVER = ("types", "verify", "chosen")


def command_of(source: str | Path, options: Options, type_name: str) -> str:
    """The command that makes ``type_name`` of ``source`` as ``options`` say."""
    words = ["kconv", "to-gguf", str(source), *_type_words(options, type_name)]
    for field in fields(options):
        value = getattr(options, field.name)
        if field.name in _NEVER or value == field.default:
            continue
        option = _NAMES.get(field.name, "--" + field.name.replace("_", "-"))
        values = value if isinstance(value, tuple) else (value,)
        words += [word for each in values for word in ([option] if each is True else [option, str(each)])]
    return shlex.join(words)


def _type_words(options: Options, type_name: str) -> list[str]:
    """``-q q4_0``, or the target of a file whose formats are chosen."""
    chosen = options.chosen
    sizes = [text for text in chosen.sizes if "".join(text.split()) == type_name]
    losses = [f"{value:g}" for value in chosen.divergences if f"KL{value:g}" == type_name]
    if not (sizes or losses) and (chosen.targets or chosen.policy is None or type_name in options.types):
        return ["-q", type_name]
    words = [word for size in sizes[:1] for word in ("--target-size", size)]
    words += [word for loss in losses[:1] for word in ("--target-kl", loss)]
    words += ["--menu", ",".join(chosen.menu)] if chosen.menu else []
    return words + (["--policy", chosen.policy] if chosen.policy is not None else [])


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
