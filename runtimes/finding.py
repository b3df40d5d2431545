"""What an examination of this machine found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    ``level`` is ``broken`` where kconv does not work, or not as it should. ``text`` says what was found,
    ``mend`` the command that mends it or what else to do; ``figures`` are the same for programs: bytes.
    """

    name: str
    text: str
    level: Literal["ok", "warning", "broken"] = "ok"
    mend: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
