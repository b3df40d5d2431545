"""A checkpoint of the Hub as a folder here: all of it, or its small files and ranges of the others."""

from __future__ import annotations

from pathlib import Path

from ..core.elsewhere import Elsewhere
from ..core.errors import CheckpointError
from ..core.progress import Progress, silent
from ..core.weight_files import find_weights
from .cache import snapshot
from .download import fetch_files, is_here
from .headers import openers
from .names import parse_checkpoint_name
from .refusals import partial_cache
from .source import HubSource, resolve
from .wanted import first_files, likely_weights, second_files, small_files, weight_files


def local_checkpoint(source: str | Path, progress: Progress = silent) -> str | Path:
    """The folder a checkpoint lies in: ``source`` itself, or what it names on the Hub, downloaded.

    Takes what ``parse_checkpoint_name`` takes. Raises what ``resolve`` and ``fetch`` raise.
    """
    name = parse_checkpoint_name(source)
    return source if name is None else fetch(resolve(name), progress)


def fetch(source: HubSource, progress: Progress = silent) -> Path:
    """Have in the cache what a conversion needs of a repository, and return its folder.

    Raises what ``fetch_files`` raises, and CheckpointError for a repository without a checkpoint.
    """
    if not source.listed:
        return _as_it_lies(source)
    small = small_files(source)
    if source.unreached is not None:
        return fetch_files(source, [*small, *likely_weights(source)])
    folder = fetch_files(source, small)
    return fetch_files(source, [*small, *weight_files(source, folder)], progress)


def _as_it_lies(source: HubSource) -> Path:
    """The folder in the cache, if it has what every checkpoint has: nobody could say what else is missing."""
    folder = snapshot(source.repository, source.commit)
    try:
        if not (folder / "config.json").is_file():
            raise CheckpointError("no config.json")
        find_weights(folder)
    except CheckpointError as error:
        there = [each.path for each in source.files]
        assert source.unreached is not None
        raise partial_cache(source.asked, source.commit, there, source.unreached) from error
    return folder


def headers_only(source: str | Path) -> str | Path | Elsewhere:
    """A checkpoint to be opened but not read: of one on the Hub the small files, and ranges of the weights.

    Weights that are in the cache already are read there. Raises as ``local_checkpoint`` does.
    """
    name = parse_checkpoint_name(source)
    if name is None:
        return source
    return remote_checkpoint(resolve(name))


def remote_checkpoint(source: HubSource) -> Path | Elsewhere:
    """The same of a repository that was resolved."""
    folder = snapshot(source.repository, source.commit)
    if not source.listed:
        return _as_it_lies(source)
    first = first_files(source)
    fetch_files(source, first)
    fetch_files(source, [*first, *second_files(source, folder)])
    weights = weight_files(source, folder)
    return Elsewhere(folder, openers(source, [file for file in weights if not is_here(source, file)]))
