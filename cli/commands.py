"""All commands of kconv. Each lives in its own module, imported when it is used."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from ..core.language import LANGUAGES, chosen, speak, speaking
from .errors import interruptible, report
from .help_text import SpokenContext

# Command name -> module of this room; each module has one click command called `command`.
COMMANDS = {
    "to-gguf": "to_gguf",
    "to-onnx": "to_onnx",
    "verify": "verify",
    "quantize": "quantize",
    "imatrix": "imatrix",
    "plan": "plan",
    "compare": "compare",
    "batch": "batch",
    "inspect": "inspection",
    "card": "card",
    "upload": "upload",
    "run": "run",
    "serve": "serve",
    "models": "models",
    "doctor": "doctor",
    "demo-checkpoint": "demo_checkpoint",
    "clean": "clean",
    "completion": "completion",
    "help": "help",
}


# Set by the shell, through the script that `kconv completion` prints.
COMPLETION = "_KCONV_COMPLETE"


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for, which keeps every start quick."""

    context_class = SpokenContext

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, or None."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f".{COMMANDS[cmd_name]}", __package__).command
        if not any(parameter.name == _LANG.name for parameter in command.params):
            command.params.append(_LANG)
        command.context_class = SpokenContext
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown command is answered with those there are."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from .slips import unknown_command

            raise unknown_command(args[0], list(COMMANDS), args[1:])
        if args[1:] == ["help"] and args[0] != "help" and not os.path.lexists("help"):
            from .slips import help_behind

            raise help_behind(args[0])
        return super().resolve_command(ctx, args)


def _show_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from .versions import versions

        click.echo("\n".join(f"{name} {version}" for name, version in versions().items()))
        ctx.exit()


def _choose_language(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        speak(value)


_LANG = click.Option(
    ["--lang"],
    type=click.Choice(LANGUAGES),
    is_eager=True,
    expose_value=False,
    callback=_choose_language,
    help="Language of messages, help, verdicts and reports.  [default: KCONV_LANG, else by locale]",
)
"""The same before and behind the name of a command."""

EPILOG = """\b
Examples:
  kconv plan ./42dot_LLM-SFT-1.3B
  kconv to-gguf ./42dot_LLM-SFT-1.3B -q q4_0 -q q8_0
  kconv verify 42dot_LLM-SFT-1.3B-Q4_0.gguf --against ./42dot_LLM-SFT-1.3B --report proof.html
  kconv run 42dot_LLM-SFT-1.3B-Q4_0.gguf -p "서울의 명소를 알려줘."
  kconv inspect 42dot_LLM-SFT-1.3B-Q4_0.gguf

Exit codes: 0 done, 1 the proof failed, 2 wrong usage, 3 input refused, 4 environment (disk, memory,
permission), 70 a bug in kconv, 130 interrupted.
"""


@click.group(
    cls=LazyGroup,
    no_args_is_help=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EPILOG,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the versions of kconv and its main dependencies, and exit.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Convert Korean language-model checkpoints to GGUF and ONNX, and prove that the files match them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help(), err=True)
        raise click.UsageError(f"no command given; commands are: {', '.join(COMMANDS)}", ctx)
    from .progress import announce_leftovers
    from .shortage import check_address_space

    check_address_space()
    announce_leftovers(ctx.obj or ())


cli.params.append(_LANG)


def _open_closed_streams() -> None:
    """Point streams that were closed (``2>&-``) at /dev/null.

    Else the next file opened, maybe the one being written, gets their number and what libraries print there;
    and ``print`` without a standard error writes between the JSON.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)
            if nothing != number:
                os.dup2(nothing, number)
                os.close(nothing)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _prepare_streams() -> None:
    """Never fail for want of a character: what an encoding lacks is written as an escape."""
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        reconfigure: Any = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def run(arguments: Sequence[str]) -> int:
    """Run kconv with ``arguments`` and return the exit code."""
    words = list(arguments)
    given = tuple(words)
    flags = frozenset(words[: words.index("--")] if "--" in words else words)  # click empties the list
    _prepare_streams()
    if COMPLETION in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(cli, {}, "kconv", COMPLETION, os.environ[COMPLETION])
    with speaking(_asked(given) or chosen()):
        try:
            with interruptible():
                # Not click's own main(): it would exit with 1 for a broken pipe, and 1 means a failed proof.
                with cli.make_context("kconv", words, obj=list(arguments)) as context:
                    cli.invoke(context)
                if sys.stdout is not None:
                    sys.stdout.flush()
        except BaseException as error:
            if isinstance(error, click.UsageError):
                from .slips import answered

                error = answered(error, given)
            return report(error, as_json="--json" in flags, verbose="--verbose" in flags)
    return 0


def _asked(words: Sequence[str]) -> str | None:
    """The language ``--lang`` names, wherever it stands: what is wrong before it is said in it, too."""
    for number, word in enumerate(words):
        if word == "--":
            break
        name, given, value = word.partition("=")
        value = value if given else words[number + 1] if number + 1 < len(words) else ""
        if name == "--lang" and value in LANGUAGES:
            return value
    return None
