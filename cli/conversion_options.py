"""Options that decide what a conversion writes, for all commands that convert, plan or compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, decorated, tensor_type_options

if TYPE_CHECKING:
    from ..converters.results import Options


def split_list(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    """The values of a repeatable option, each of which may be several with commas."""
    if any(not value.strip(" ,") for value in values):  # a variable of a script that is not set
        raise click.BadParameter("it is empty", ctx, parameter)
    return tuple(part.strip() for value in values for part in value.split(",") if part.strip())


def types_option(default: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``-q``; ``default`` says what is done where it is not given."""
    return click.option(
        "-q",
        "--type",
        "types",
        multiple=True,
        metavar="TYPE",
        callback=split_list,
        help="Type of the weights: any name llama-quantize knows (q8_0, q4_k_m, iq4_xs, f16 …; kconv models "
        "lists them), or auto, which keeps the checkpoint's own float type (F32 if F16 would overflow). Case "
        "does not matter. Several -q (or a list with commas) make several files from one read. A recipe can "
        "be adjusted per file: "
        f"q4_k_m:pure, q4_k_m:output=q8_0, q4_k_m:ffn_down=q6_k.  [default: {default}]",
    )


def importance_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--imatrix`` and ``--calibrate``."""
    return decorated(command, _IMPORTANCE_OPTIONS)


def conversion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """All of ``converters.results.Options`` that files depend on, but the types."""
    command = decorated(command, _OTHER_OPTIONS)
    return tensor_type_options(importance_options(command))


def asked(types: tuple[str, ...], options: Mapping[str, Any]) -> Options:
    """What these options ask for; ``options`` are the values click has read of all the others."""
    from ..converters.results import Options
    from .target_options import take_wanted

    options = dict(options)
    if "target_size" in options:
        options["chosen"] = take_wanted(options)
    files = {
        "imatrix": None if options["imatrix"] is None else str(options["imatrix"]),
        "calibrate": tuple(map(str, options["calibrate"])),
    }
    return Options(types, **{**options, **files})


drop_extra_tokens_option = click.option(
    "--drop-extra-tokens",
    is_flag=True,
    help="Leave out tokens that were added to the tokenizer without a row in the embedding.",
)
chat_template_option = click.option(
    "--chat-template",
    metavar="NAME|FILE",
    help="Chat template to write: a known name (42dot, aog), none, or a Jinja file.  [default: the "
    "checkpoint's own]",
)

optimize_option = click.option(
    "--optimize",
    is_flag=True,
    help="Choose the codes of all quantized matrices so that errors cancel for the inputs measured (GPTQ in "
    "llama.cpp's own formats): same types and sizes, less loss. With --calibrate, or --imatrix and a file "
    "from kconv imatrix --full.",
)

_IMPORTANCE_OPTIONS = (
    click.option(
        "--imatrix",
        type=PATH,
        metavar="FILE",
        help="Importance data to quantize with: a file from kconv imatrix or llama.cpp (GGUF or .dat).",
    ),
    click.option(
        "--calibrate",
        multiple=True,
        type=PATH,
        metavar="FILE",
        help="Compute importance data first, by running the checkpoint on this UTF-8 text (on samples of "
        "it if it is long), and keep them beside the output. Repeatable.",
    ),
)

_OTHER_OPTIONS = (
    click.option(
        "--keep-wo",
        is_flag=True,
        help="T5, ByT5: keep the feed-forward output matrices (wo), the most sensitive part of these "
        "models, in the checkpoint's precision.",
    ),
    click.option(
        "--allow-tokenizer-mismatch",
        is_flag=True,
        help=(
            "Write the best vocabulary found even if it gives other token ids than the checkpoint's "
            "tokenizer."
        ),
    ),
    click.option(
        "--no-adapter",
        "disabled_adapters",
        multiple=True,
        metavar="NAME",
        callback=split_list,
        help="Do not apply this vocabulary adapter; the output lists those applied. Repeatable.",
    ),
    chat_template_option,
    drop_extra_tokens_option,
    click.option(
        "--words-as-text",
        is_flag=True,
        help="Write ordinary words among the special tokens as text; llama.cpp prints special tokens as "
        "nothing.",
    ),
)
