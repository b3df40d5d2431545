"""What commands take for a checkpoint: a folder, or a repository of the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..core.errors import UsageError
from .options import is_in_store

_REVISION = "kconv.revision"


class SourceType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic in newer versions
    """A path, as PATH gives it; text where a repository of the Hub is meant, with the revision asked for.

    Nothing is looked up or fetched here: that is done when all of the command line is known to make sense.
    """

    name = "path"

    def __init__(self, *, objects: bool = False) -> None:
        self.objects = objects

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str | Path:  # and not more, so that commands pass on what they get
        """See the class. Raises UsageError for an empty path, a page of no model, a revision of a folder."""
        from ..hub.names import parse_hub_name

        if isinstance(value, Path):
            return value
        if not value:
            raise UsageError("the path is empty", hint="is a variable of the shell unset? . is this folder")
        if is_in_store(value):
            if not self.objects:
                self.fail("object stores are read by to-gguf and to-onnx alone", param, ctx)
            return str(value)
        revision = None if ctx is None else ctx.meta.get(_REVISION)
        name = parse_hub_name(value, revision)
        if name is not None:
            return f"hf://{name}" if value.lower().startswith(("hf:", "http")) else str(name)
        if revision is not None:
            raise UsageError(
                f"--revision is for repositories of the Hub, and {value} is none",
                hint="leave it out, or give the repository as hf://org/name",
            )
        return Path(value)


SOURCE = SourceType()
"""A checkpoint or an artifact: a path, org/name[@revision], hf://org/name or the address of its page."""
SOURCE_OR_OBJECTS = SourceType(objects=True)
"""The same, or ``s3://bucket/prefix``."""


def _keep(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    context.meta[_REVISION] = value


revision_option = click.option(
    "--revision",
    metavar="REV",
    is_eager=True,  # before the argument it belongs to
    expose_value=False,
    callback=_keep,
    help="Branch, tag or commit of a repository on the Hub (org/name).  [default: main]",
)
