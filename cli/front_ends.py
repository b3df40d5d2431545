"""Front ends: what makes the input of an encoder in place of its own embedding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import GgufError


@dataclass(frozen=True)
class FrontEnd:
    """``embed`` turns token ids into float32 ``(positions, width)``, a position for ``factor`` tokens."""

    embed: Callable[[Sequence[int]], Any]
    factor: int


def front_end_for(artifact: Path, metadata: Mapping[str, Any], chosen: Path | None) -> FrontEnd | None:
    """The GBST front end the GGUF at ``artifact`` needs, ``chosen`` or the one beside it; None if none.

    Raises GgufError where it is missing, another model's or damaged, or not asked for.
    """
    from ..converters.families import FRONT_ENDS

    if metadata.get("general.architecture") in [each.kind for each in FRONT_ENDS]:
        raise GgufError(
            f"{artifact} is the front end of a GBST model, which runs together with its body",
            hint=f"give the body, with --front-end {artifact} if that is in another folder",
        )
    if chosen is None and "kconv.front_end" not in metadata:
        return None
    from ..converters.front_end import front_end_of

    found = front_end_of(FRONT_ENDS, artifact, metadata, chosen)
    return None if found is None else FrontEnd(found.embed, found.factor)
