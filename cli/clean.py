"""``kconv clean``: what killed runs have left."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core.errors import EnvironmentProblem, UsageError
from .clean_uploads import end_uploads
from .console import emit_json, printable, say, size_text, table
from .options import PATH, json_option, verbose_option
from .progress import leftovers_text

if TYPE_CHECKING:
    from ..core.leftovers import Leftover

EXAMPLES = """\b
Examples:
  kconv clean
  kconv clean dist/ --yes
  kconv clean dist/ models/ --json
"""

_REMARKS = {
    "left": "",
    "in use": "in use by a run that is still going",
    "unknown": "changed within the last day, and no lock shows whether it is in use; not removed",
}


@click.command("clean", short_help="Remove the unfinished files of killed runs.", epilog=EXAMPLES)
@click.argument("folders", type=PATH, nargs=-1, metavar="[FOLDER]...")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@json_option
@verbose_option
def command(folders: tuple[Path, ...], yes: bool, as_json: bool, verbose: bool) -> None:
    """Show and remove the unfinished files that runs of kconv have left in each FOLDER.

    Runs that were killed or ended by a power cut leave hidden files (.NAME.kconv-....partial) and folders
    in TMPDIR. TMPDIR is always searched; the default FOLDER is the current one. Files that a run is still
    using are never touched, nor is anything with another name. The next run that writes to a folder cleans
    it in the same way, but for files that --resume can go on with: they stay until the same files are
    written anew, or are removed here. Uploads to an object store (s3://) that were left open there are
    ended, too.
    """
    from ..core.leftovers import remove, take_back

    leftovers = _all_leftovers(folders or (Path(),))
    left = [each for each in leftovers if each.state == "left"]
    if not as_json:
        _show(leftovers)
    uploads = end_uploads(yes=yes, ask=not as_json)
    removed = []
    if left and (yes or (not as_json and _agreed(left))):
        for folder in dict.fromkeys(each.path.parent for each in left):
            take_back(folder)
        for each in left:
            try:
                gone = remove(each.path)
            except OSError as error:
                raise EnvironmentProblem(
                    f"cannot remove {each.path}: {error.strerror or error}",
                    hint="check the permissions of its folder",
                ) from error
            removed += [gone] if gone is not None else []
    if as_json:
        emit_json({**_as_json(leftovers, removed), "uploads": uploads})
    elif removed:
        say(f"removed {leftovers_text(removed)}")


def _all_leftovers(folders: Iterable[Path]) -> list[Leftover]:
    """What lies in these folders and in TMPDIR, each folder once."""
    from ..core.leftovers import find_leftovers

    found: dict[str, Leftover] = {}
    for folder in (*folders, Path(tempfile.gettempdir())):
        if not folder.is_dir():
            what = "is a file, expected a folder" if folder.exists() else "does not exist"
            raise UsageError(f"{folder} {what}")
        try:
            for each in find_leftovers(folder):
                found.setdefault(os.path.realpath(each.path), each)
        except OSError as error:
            raise EnvironmentProblem(f"cannot list {folder}: {error.strerror or error}") from error
    return list(found.values())


def _show(leftovers: Sequence[Leftover]) -> None:
    if not leftovers:
        say("nothing left by killed runs")
        return
    rows = [(str(each.path), size_text(each.bytes), _remark(each)) for each in leftovers]
    say(table(rows, right=(1,)))


def _remark(each: Leftover) -> str:
    return "--resume can go on with it" if each.kept and each.state == "left" else _REMARKS[each.state]


def _agreed(left: Sequence[Leftover]) -> bool:
    if not sys.stdin.isatty():
        say(f"{leftovers_text(left)} left by killed runs; --yes removes them")
        return False
    return click.confirm(f"Remove {printable(leftovers_text(left))}?")


def _as_json(leftovers: Sequence[Leftover], removed: Sequence[Leftover]) -> dict[str, object]:
    gone = {each.path for each in removed}
    return {
        "leftovers": [
            {
                "path": str(each.path),
                "bytes": each.bytes,
                "state": each.state,
                "resumable": each.kept,
                "removed": each.path in gone,
            }
            for each in leftovers
        ],
        "bytes": sum(each.bytes for each in leftovers if each.state == "left"),
        "bytes_removed": sum(each.bytes for each in removed),
    }
