"""Uploads that killed runs have left open in object stores, as ``kconv clean`` shows and ends them."""

from __future__ import annotations

import sys

import click

from .console import plural, printable, say


def end_uploads(*, yes: bool, ask: bool) -> list[dict[str, object]]:
    """Show those there are (where we may ``ask``), end them where that is wanted; returns them for --json.

    Only those noted for the store that the environment names now. Raises UsageError, EnvironmentProblem.
    """
    from ..hub.multipart import end_left_open
    from ..hub.upload_notes import left_open

    found = left_open()
    if not found:
        return []
    names = [str(each.place) for each in found]
    what = f"{plural(len(found), 'upload')} left open by killed runs: {', '.join(names[:5])}"
    if ask:
        say(printable(what))
        if not yes and sys.stdin.isatty():
            yes = click.confirm("End them?")
        elif not yes:
            say("--yes ends them")
    ended = {each.note for each in end_left_open()} if yes else set()
    if ask and yes:
        failed = len(found) - len(ended)
        say(f"ended {plural(len(ended), 'upload')}" + (f", {failed} could not be ended" if failed else ""))
    return [{"place": str(each.place), "ended": each.note in ended} for each in found]
