"""How a file's formats and codes were chosen, as keys of the file itself: what it takes to make it again.

``kconv.chosen.*`` say by which target and on which text formats were chosen, ``kconv.optimized.*`` by which
statistics and rule codes were. Both name the version of kconv; nothing of either is random, so there is no
seed to name.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from ..core.model import MetadataValue
from .importance import OPTIMIZED, Importance

if TYPE_CHECKING:
    from .policy_file import Choice

CHOSEN = "kconv.chosen"
"""Before the keys by which a file says what its formats were chosen by."""

_MEASURED = {"texts_sha256": str, "tokens": int, "held_out_tokens": int, "probe": str, "recipe": str}
"""What of a choice's measurement stands in a file, and of which type; a policy file may say anything."""


def provenance(choice: Choice | None, importance: Importance | None) -> dict[str, MetadataValue]:
    """The keys of a file whose formats were chosen, or codes; none of any other.

    ``predicted_kl`` is a number of fixed size, so that a file's size is known before it is.
    """
    keys: dict[str, MetadataValue] = {}
    if choice is not None:
        keys[f"{CHOSEN}.target"] = choice.label
        keys[f"{CHOSEN}.predicted_kl"] = choice.predicted
        for name, kind in _MEASURED.items():
            value = choice.measured.get(name)
            if isinstance(value, str | int) and type(value) is kind:
                keys[f"{CHOSEN}.{name}"] = value
        menu = choice.measured.get("menu")
        if isinstance(menu, list | tuple) and menu:
            keys[f"{CHOSEN}.menu"] = ",".join(map(str, menu))
        keys[f"{CHOSEN}.version"] = _version()
    if importance is not None and importance.optimization is not None:
        from .strengths import RULE, STRENGTHS

        keys[f"{OPTIMIZED}.strengths"] = ",".join(map(str, STRENGTHS))
        keys[f"{OPTIMIZED}.rule"] = RULE
        keys[f"{OPTIMIZED}.version"] = _version()
    return keys


def is_provenance(key: str) -> bool:
    """Whether a key says how weights were made; of weights that are made anew it would be wrong."""
    return key.startswith((f"{CHOSEN}.", f"{OPTIMIZED}."))


def provenance_in(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What a file says of how its formats, and its codes, were chosen, each in a line; None: nothing."""
    chosen = {
        key.rpartition(".")[2]: value for key, value in metadata.items() if key.startswith(CHOSEN + ".")
    }
    codes = {
        key.rpartition(".")[2]: value for key, value in metadata.items() if key.startswith(OPTIMIZED + ".")
    }
    return _line(chosen) if chosen else None, _line(codes) if codes else None


def _line(values: Mapping[str, Any]) -> str:
    shown = {key: f"{value:.4g}" if isinstance(value, float) else str(value) for key, value in values.items()}
    short = {key: f"{text[:12]}…" if key.endswith("sha256") else text for key, text in shown.items()}
    return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in short.items())


def _version() -> str:
    try:
        return version("kconv")
    except PackageNotFoundError:
        return "unknown"
