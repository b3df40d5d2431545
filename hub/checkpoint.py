"""A checkpoint of the Hub as a folder here: all of it, or its small files and ranges of the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..core.elsewhere import Elsewhere
from ..core.progress import Progress, silent
from .cache import snapshot
from .download import fetch_files
from .headers import HeaderReader
from .names import parse_hub_name
from .source import HubSource, resolve
from .wanted import first_files, second_files, small_files, weight_files

Announce = Callable[[str], None]


def local_checkpoint(source: str | Path, progress: Progress = silent) -> str | Path:
    """The folder a checkpoint lies in: ``source`` itself, or what it names on the Hub, downloaded.

    Takes what ``parse_hub_name`` takes. Raises what ``resolve`` and ``fetch`` raise.
    """
    name = parse_hub_name(source)
    return source if name is None else fetch(resolve(name), progress)


def fetch(source: HubSource, progress: Progress = silent) -> Path:
    """Have in the cache what a conversion needs of a repository, and return its folder.

    Raises what ``fetch_files`` raises, and CheckpointError for a repository without a checkpoint.
    """
    if not source.listed:  # nobody knows what is missing; the folder is read like any other
        return snapshot(source.repository, source.commit)
    small = small_files(source)
    folder = fetch_files(source, small)
    return fetch_files(source, [*small, *weight_files(source, folder)], progress)


def headers_only(source: str | Path) -> str | Path | Elsewhere:
    """A checkpoint to be opened but not read: of one on the Hub the small files, and ranges of the weights.

    Weights that are in the cache already are read there. Raises as ``local_checkpoint`` does.
    """
    name = parse_hub_name(source)
    if name is None:
        return source
    return remote_checkpoint(resolve(name))


def remote_checkpoint(source: HubSource) -> Path | Elsewhere:
    """The same of a repository that was resolved."""
    folder = snapshot(source.repository, source.commit)
    if not source.listed:
        return folder
    first = first_files(source)
    fetch_files(source, first)
    fetch_files(source, [*first, *second_files(source, folder)])
    weights = weight_files(source, folder)
    reader = HeaderReader(source)
    return Elsewhere(folder, {file.path: reader.opener(file) for file in weights if not reader.is_here(file)})
