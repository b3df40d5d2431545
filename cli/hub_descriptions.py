"""What ``kconv inspect`` says of a repository on the Hub: from small files and the headers of its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .descriptions import Description, describe_checkpoint, describe_gguf

if TYPE_CHECKING:
    from ..hub.names import HubName
    from ..hub.source import HubSource


def describe_repository(text: str) -> Description:
    """A checkpoint or a GGUF on the Hub, of which no weight is fetched, or ONNX files, which are fetched.

    Raises what describing a folder raises, HubRefusal and EnvironmentProblem.
    """
    from ..core.weight_files import STANDARD
    from ..hub.artifact import is_shelf_of_ggufs, local_artifact
    from ..hub.checkpoint import remote_checkpoint
    from ..hub.names import parse_hub_name
    from ..hub.source import resolve
    from .onnx_descriptions import describe_onnx
    from .progress import shown_progress

    name = parse_hub_name(text)
    source = resolve(name or text)
    names = {each.path for each in source.files}
    is_checkpoint = "config.json" in names and not names.isdisjoint(STANDARD)
    if name is not None and (name.means_gguf or (is_shelf_of_ggufs(source) and not is_checkpoint)):
        return _remote_gguf(source, name)
    if any(each.endswith(".onnx") for each in names) and names.isdisjoint(STANDARD):
        with shown_progress() as progress:
            described = describe_onnx(local_artifact(f"hf://{source}", progress))
    else:
        described = describe_checkpoint(remote_checkpoint(source))
    return {**described, "path": str(source)}


def _remote_gguf(source: HubSource, name: HubName) -> Description:
    """A GGUF of a repository, from ranges of it."""
    from ..core.gguf_split import read_model
    from ..hub.cache import snapshot
    from ..hub.gguf_files import RemoteModel

    remote = RemoteModel(source, name)
    described = describe_gguf(remote.path, read_model(remote.path, remote.opener, remote.exists))
    above = snapshot(source.repository, source.commit)

    def there(path: str) -> str:
        return f"hf://{source}/{path.removeprefix(f'{above}/')}"

    return {
        **described,
        "path": there(described["path"]),
        "parts": [there(each) for each in described["parts"]],
    }
