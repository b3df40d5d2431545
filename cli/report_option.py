"""``--report``: a page a command writes at its end, refused at its beginning if it cannot be written."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import EnvironmentProblem, InputError, KconvError, UsageError
from ..core.files import refuse_existing


def refuse_report(report: Path, *, force: bool) -> None:
    """Raise, before any work, where the report cannot be written in the end."""
    if report.suffix.lower() not in (".html", ".htm"):  # so that --force can never strike a model or a text
        raise UsageError(
            f"--report {report}: expected a file name that ends in .html",
            hint=f"pass --report {shlex.quote(str(report.with_suffix('.html')))}",
        )
    if report.is_dir():
        raise InputError(f"{report} is a folder, expected a file", hint="choose another --report")
    with naming_the_report():
        refuse_existing(report, force=force)
    above = next(parent for parent in report.absolute().parents if os.path.lexists(parent))
    if not os.access(above, os.W_OK | os.X_OK):
        raise EnvironmentProblem(
            f"no permission to write {report}", hint="choose a --report in a folder you may write to"
        )


@contextlib.contextmanager
def naming_the_report() -> Iterator[None]:
    """Errors about files a command makes mention -o; for the report they mention --report instead."""
    try:
        yield
    except KconvError as error:
        error.hint = error.hint and error.hint.replace("-o", "--report")
        raise
