"""What ``kconv inspect`` says of a repository on the Hub: from small files and the headers of its weights."""

from __future__ import annotations

from .descriptions import Description, describe_checkpoint


def describe_repository(text: str) -> Description:
    """A checkpoint on the Hub, of which no weight is fetched, or a folder of ONNX files, which is fetched.

    Raises what describing a folder raises, HubRefusal and EnvironmentProblem.
    """
    from ..core.weight_files import STANDARD
    from ..hub.artifact import local_artifact
    from ..hub.checkpoint import remote_checkpoint
    from ..hub.source import resolve
    from .onnx_descriptions import describe_onnx
    from .progress import shown_progress

    source = resolve(text)
    names = {each.path for each in source.files}
    if any(name.endswith(".onnx") for name in names) and names.isdisjoint(STANDARD):
        with shown_progress() as progress:
            described = describe_onnx(local_artifact(f"hf://{source}", progress))
    else:
        described = describe_checkpoint(remote_checkpoint(source))
    return {**described, "path": str(source)}
