"""Options that mean the same in every command."""

from __future__ import annotations

from pathlib import Path

import click

PATH: click.Path = click.Path(path_type=Path, readable=False)  # False: click shall not look
"""A path of any kind: what is wrong with it is said by whoever reads it, with exit code 3 or 4."""

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object on standard output and nothing else there; prose goes to standard error.",
)
verbose_option = click.option(
    "--verbose", is_flag=True, help="Say more, keep llama.cpp's log, show tracebacks."
)
force_option = click.option("--force", is_flag=True, help="Overwrite what is there already.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    metavar="N",
    help="Threads to work with.  [default: one per core this process may use]",
)
