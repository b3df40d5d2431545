"""Checkpoints that are on the Hub: looked at before gigabytes of them are fetched."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from ..converters.family import AnyFamily
from ..converters.intake import open_model
from ..converters.results import Scope
from ..core.checkpoint import Checkpoint
from ..core.elsewhere import Elsewhere, Stream
from ..core.errors import (
    CheckpointError,
    DamagedOnTheWay,
    MappingError,
    UnsupportedModel,
    UsageError,
    WeightsElsewhere,
)
from ..core.scratch import scratch_folder
from ..core.sizes import decimal_size
from ..hub.names import HubName, parse_checkpoint_name
from ..hub.object_names import parse_object
from .results import Run

_FOLDERS: ContextVar[contextlib.ExitStack] = ContextVar("folders")


@contextlib.contextmanager
def leaving_nothing() -> Iterator[None]:
    """Temporary folders in which ``arrived`` puts something are gone behind this; also a decorator."""
    with contextlib.ExitStack() as stack:
        token = _FOLDERS.set(stack)
        try:
            yield
        finally:
            _FOLDERS.reset(token)


T = TypeVar("T")


def until_the_end(context: contextlib.AbstractContextManager[T]) -> T:
    """Enter what is to be left at the end of ``leaving_nothing``."""
    return _FOLDERS.get().enter_context(context)


def arrived(
    source: str | Path | Elsewhere, look: Callable[[Checkpoint, AnyFamily], object], run: Run
) -> str | Path | Elsewhere:
    """What to open in place of ``source``: the folder of a checkpoint on the Hub, else the very same.

    Where the run is streamed, the weights stay on the Hub; those in object stores are always streamed.
    ``look`` is given the checkpoint before its weights are fetched, as names and shapes: what it refuses
    costs no download. To be called within ``leaving_nothing``. Raises what it raises, and what resolving and
    fetching raise.
    """
    place = parse_object(source)
    if place is not None:
        from ..hub.object_store import object_checkpoint

        folder = _FOLDERS.get().enter_context(scratch_folder("object"))
        return object_checkpoint(place, folder, run.announce)
    name = parse_checkpoint_name(source)
    if name is None:
        if run.streamed and not isinstance(source, Elsewhere):
            raise UsageError(
                f"{source} is on this machine: there is nothing to stream",
                hint="leave out --stream; a repository of the Hub is named org/name or hf://org/name",
            )
        return source
    return _of_the_hub(name, look, run)


def _of_the_hub(name: HubName, look: Callable[[Checkpoint, AnyFamily], object], run: Run) -> Path | Elsewhere:
    # here, since conversions of what lies on this machine need none of it
    from ..hub.checkpoint import fetch, remote_checkpoint
    from ..hub.source import resolve
    from ..hub.streaming import stream_checkpoint

    found = resolve(name)
    if run.streamed:
        return _sound(lambda: stream_checkpoint(found, run.announce), look)[0]
    if found.unreached is None:
        # what the first cannot see, or what came damaged, is looked at when all is here
        with contextlib.suppress(WeightsElsewhere, DamagedOnTheWay):
            _sound(lambda: remote_checkpoint(found), look)
    return fetch(found, run.progress)


def opened_headers(source: str | Path) -> tuple[Checkpoint, AnyFamily]:
    """``open_model`` of a checkpoint of which no weight is read. Raises as ``headers_only`` and that do."""
    from ..hub.checkpoint import headers_only

    return _sound(lambda: headers_only(source), lambda checkpoint, family: None)[1]


Place = TypeVar("Place", bound=str | Path | Elsewhere)


def _sound(
    begin: Callable[[], Place], look: Callable[[Checkpoint, AnyFamily], object]
) -> tuple[Place, tuple[Checkpoint, AnyFamily]]:
    """What ``begin`` gives, opened and looked at; once more where headers from elsewhere were refused.

    No part of a file has a sum, so one of those may have come damaged.
    """
    place = begin()
    try:
        opened = open_model(place)
        look(*opened)
    except (CheckpointError, UnsupportedModel, MappingError):
        if not isinstance(place, Elsewhere):
            raise
        place = begin()
        opened = open_model(place)
        look(*opened)
    return place, opened


_FULL = 2.5  # times that the full proof reads the weights: in fp32, weight by weight, and to find causes


def announce_traffic(
    stream: Stream | None, verify: Scope, announce: Callable[[str], None], *, calibrated: bool = False
) -> None:
    """Say how much will be fetched before it is, and what that is for; nothing without a stream."""
    if stream is None:
        return
    again = int(stream.size * {"off": 1.0 if calibrated else 0.0, "quick": 1.0, "full": _FULL}[verify])
    text = f"streamed: {decimal_size(stream.size)} are fetched for the conversion"
    if again:
        what = "to calibrate and for the proof" if calibrated else "for the proof"
        ways = "" if calibrated else " (--no-verify leaves it out, kconv verify can follow)"
        in_all = decimal_size(stream.size + again)
        text += f" and about {decimal_size(again)} {what}{ways}: about {in_all} in all"
    announce(f"{text}; none of it is kept on this machine")
