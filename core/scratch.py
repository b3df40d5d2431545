"""Folders for what is needed only while kconv runs."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .claims import claimed_folder, new_mark
from .errors import no_temporary_folder
from .files import explained
from .leftovers import sweep


@contextlib.contextmanager
def scratch_folder(kind: str, above: Path | None = None) -> Iterator[Path]:
    """A folder under TMPDIR, or in the folder ``above``, that is gone in the end.

    ``kind`` becomes part of its name. What killed runs have left there is removed first. Raises
    EnvironmentProblem.
    """
    with contextlib.ExitStack() as stack:
        if above is None:
            try:
                folder = Path(tempfile.gettempdir()) / f"kconv-{kind}-{new_mark()}.partial"
                sweep(folder.parent)
                stack.enter_context(claimed_folder(folder))
            except OSError as error:
                raise no_temporary_folder(error) from error
        else:
            folder = above / f".kconv-{kind}-{new_mark()}.partial"
            sweep(above)
            with explained(folder):
                stack.enter_context(claimed_folder(folder))
        yield folder
