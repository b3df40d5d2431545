"""When and where something was proven, and the model's licence: for people, not for manifests."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from ..core.checkpoint import Checkpoint
from ..core.cores import available_cores
from ..core.errors import KconvError
from ..core.machine import memory, processor
from ..quant.cpu_features import cpu_features
from .card import general_metadata


@dataclass(frozen=True)
class Circumstances:
    """``date`` is UTC in ISO 8601; ``cores`` those the process may use, ``memory`` bytes it can have at most.

    ``instructions`` are those llama.cpp was compiled with, none where it did not run or does not say.
    ``licence`` is what the checkpoint's card or licence file names.
    """

    date: str = ""
    processor: str = ""
    cores: int = 0
    instructions: tuple[str, ...] = ()
    memory: int | None = None
    licence: str | None = None


def circumstances(checkpoint: Checkpoint, *, llama_cpp: bool) -> Circumstances:
    """Those of a proof that ends now; ``llama_cpp`` says whether it ran here."""
    metadata: Mapping[str, object] = {}
    with contextlib.suppress(KconvError):  # a card that cannot be read costs no proof
        metadata = general_metadata(checkpoint)
    names = (metadata.get(f"general.license{end}") for end in (".name", ""))
    return Circumstances(
        f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        processor().model,
        available_cores(),
        cpu_features() if llama_cpp else (),
        memory().most,
        next((name for name in names if isinstance(name, str)), None),
    )
