"""A checkpoint on the Hub whose weights stay there: its small files here, its weights as a stream."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..core.elsewhere import Elsewhere
from .download import fetch_files
from .headers import with_sound_header
from .ranges import HubRanges
from .source import HubFile, HubSource
from .stream import StreamedFile, WeightStream
from .wanted import small_files, weight_files


def stream_checkpoint(source: HubSource, announce: Callable[[str], None] = lambda text: None) -> Elsewhere:
    """The checkpoint, with the stream its weights come by; fetches the small files.

    Raises what ``fetch_files`` raises, and CheckpointError for a repository without a checkpoint. Where the
    Hub was not reached, raises why.
    """
    if source.unreached is not None:
        raise source.unreached
    folder = fetch_files(source, small_files(source))
    files = {}
    for file in weight_files(source, folder):
        name = f"{file.path} of {source.asked}"
        files[file.path] = with_sound_header(name, partial(_streamed, source, file))
    stream = WeightStream(files, announce)
    return Elsewhere(folder, {name: stream.opener(name) for name in files}, stream)


def _streamed(source: HubSource, file: HubFile) -> StreamedFile:
    git = None if file.sha256 is not None else file.git
    return StreamedFile(HubRanges(source, file), file.sha256, git)
