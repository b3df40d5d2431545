"""Files of the Hub that a card describes or that are published elsewhere: ``hf://org/name/x.gguf``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..core.errors import HubRefusal
from ..core.gguf_split import GgufModel, read_model
from ..core.progress import Progress
from ..hub.artifact import is_shelf_of_ggufs
from ..hub.gguf_files import RemoteModel, fetch_gguf
from ..hub.names import HubName
from ..hub.source import resolve


def opened_on_the_hub(
    name: HubName, progress: Progress, *, fetch: bool
) -> tuple[GgufModel, Mapping[Path, int]]:
    """A GGUF model of a repository, and the sizes of files that are only there, by their place in the cache.

    With ``fetch`` it is downloaded with all that belongs to it, and there are none of those; else headers and
    the manifest are all that is read. Raises HubRefusal, EnvironmentProblem and what ``read_model`` raises.
    """
    source = resolve(name)
    if not name.means_gguf and not is_shelf_of_ggufs(source):
        raise HubRefusal(
            f"{name} is not a repository of GGUF files alone; expected hf://org/name/FILE.gguf or "
            "org/name:TYPE",
            hint=f"for a folder of ONNX files download it first: hf download {name.repository} --local-dir "
            f"{name.repository.rpartition('/')[2]}",
        )
    if fetch:
        return read_model(fetch_gguf(source, name, progress, modelfile=True)), {}
    remote = RemoteModel(source, name)
    return read_model(remote.path, remote.opener, remote.exists), remote.sizes
