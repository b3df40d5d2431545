"""Options that mean the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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

split_option = click.option(
    "--split-max-size",
    metavar="SIZE",
    help="Make files of at most so many bytes of weights, NAME-00001-of-00003.gguf and so on: 2G, 500M"
    " (powers of ten). llama.cpp is given the first.",
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
        "--pure", is_flag=True, help="One type throughout, instead of llama-quantize's mixture for it."
    ),
    click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        help="A ggml type for all matrices in whose names the regular expression is found, instead of what "
        "the recipe says; the first that matches decides. Repeatable.",
    ),
    click.option("--output-type", metavar="TYPE", help="A ggml type for the matrix that makes the logits."),
    click.option("--embedding-type", metavar="TYPE", help="A ggml type for the token embedding."),
)
