"""Checkpoints that are on the Hub: looked at before gigabytes of them are fetched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from ..converters.family import AnyFamily
from ..converters.intake import open_model
from ..core.checkpoint import Checkpoint
from ..core.elsewhere import Elsewhere
from ..core.errors import WeightsElsewhere
from ..core.progress import Progress
from ..hub.checkpoint import fetch, remote_checkpoint
from ..hub.names import parse_hub_name
from ..hub.source import resolve


def arrived(
    source: str | Path | Elsewhere, look: Callable[[Checkpoint, AnyFamily], object], progress: Progress
) -> str | Path | Elsewhere:
    """What to open in place of ``source``: the folder of a checkpoint on the Hub, else the very same.

    ``look`` is given the checkpoint before its weights are fetched, as names and shapes: what it refuses
    costs no download. Raises what it raises, and what resolving and fetching raise.
    """
    name = parse_hub_name(source)
    if name is None:
        return source
    found = resolve(name)
    if found.unreached is None:
        with contextlib.suppress(WeightsElsewhere):  # that look is for later
            look(*open_model(remote_checkpoint(found)))
    return fetch(found, progress)
