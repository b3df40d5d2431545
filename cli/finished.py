"""--resume of what is finished already: no error for the one who asked, who may go on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ..core.errors import AlreadyFinished
from ..core.recognition import said
from .console import emit_json, printable


def finished_is_well(command: Callable[..., None]) -> Callable[..., None]:
    """A command that, where AlreadyFinished is raised within, says so and ends with exit code 0.

    With ``as_json`` it says so as an object, too.
    """

    @functools.wraps(command)
    def answered(*words: Any, **options: Any) -> None:
        try:
            command(*words, **options)
        except AlreadyFinished as error:
            click.echo(f"kconv: {printable(said(error.message))}", err=True)
            if options["as_json"]:
                emit_json({"finished": [str(path) for path in error.paths], "exit_code": 0})

    return answered
