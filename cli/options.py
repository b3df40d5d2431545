"""Options that mean the same in every command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def is_in_store(value: Any) -> bool:
    """Whether it is the address of a place in an object store."""
    return isinstance(value, str) and value.lower().startswith("s3://")


class _LocalPath(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_in_store(value):
            self.fail("object stores are read by conversions and written by to-gguf -o", param, ctx)
        return super().convert(value, param, ctx)


class _Output(_LocalPath):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_in_store(value):
            return value
        return super().convert(value, param, ctx)


PATH: click.Path = _LocalPath(path_type=Path, readable=False)  # False: click shall not look
"""A path of any kind: what is wrong with it is said by whoever reads it, with exit code 3 or 4."""

OUTPUT: click.Path = _Output(path_type=Path, readable=False)
"""A path, or the address of a place in an object store, which stays text."""


def read_size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Bytes of ``200G``, ``1.5T`` (powers of ten)."""
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,3})?)\s*([KMGT]?)B?", value.strip(), re.IGNORECASE)
    size = float(match[1]) * 1000 ** " KMGT".index(match[2].upper() or " ") if match else 0.0
    if size < 1:
        raise click.BadParameter(f"{value!r}, expected a size: 200G, 1.5T", context, parameter)
    return int(size)


json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a single JSON object on standard output; messages go to standard error.",
)
verbose_option = click.option(
    "--verbose", is_flag=True, help="Print more details, llama.cpp's log and tracebacks."
)
force_option = click.option("--force", is_flag=True, help="Overwrite existing files.")
rehash_option = click.option(
    "--rehash",
    is_flag=True,
    help="Read all input files for their SHA-256, even those known from an earlier run (docs: resume.md).",
)
resume_option = click.option(
    "--resume",
    is_flag=True,
    help="Go on with the same command where it was killed or interrupted, from what it has left beside the "
    "output.",
)
scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Have the workers of a Dask scheduler do the work, tcp://HOST:8786; they must see the same files "
    "(docs: cluster.md).",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1, max=1024),
    metavar="N",
    help="Number of threads.  [default: one per core this process may use]",
)

stream_option = click.option(
    "--stream",
    is_flag=True,
    help="Do not keep the weights of a checkpoint on the Hub on this machine: fetch them while they are "
    "converted, and again for the proof. Says before how many bytes that will be.",
)
split_option = click.option(
    "--split-max-size",
    metavar="SIZE",
    help="Split into files of at most this many bytes of weights, NAME-00001-of-00003.gguf and so on: 2G, "
    "500M (powers of ten). Pass the first one to llama.cpp.",
)


def tensor_type_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which tensor gets which type, besides -q."""
    return decorated(command, _TENSOR_TYPE_OPTIONS)


def decorated(command: Callable[..., Any], options: tuple[Callable[[Any], Any], ...]) -> Callable[..., Any]:
    """``command`` with these options, which --help shows in this order."""
    for option in reversed(options):
        command = option(command)
    return command


_TENSOR_TYPE_OPTIONS = (
    click.option(
        "--pure",
        is_flag=True,
        help=("Use a single format for all matrices instead of llama-quantize's mixture."),
    ),
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="ggml type for all matrices whose names contain a match of the regular expression, "
        "overriding the recipe; the first match wins. Repeatable.",
    ),
    click.option(
        "--output-type",
        metavar="TYPE",
        help=("ggml type for the output matrix (the one that computes the logits)."),
    ),
    click.option("--embedding-type", metavar="TYPE", help="ggml type for the token embedding."),
)
