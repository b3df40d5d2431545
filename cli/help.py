"""``kconv help``: the same as --help, for those who type it first."""

from __future__ import annotations

import click

EXAMPLES = """\b
Examples:
  kconv help
  kconv help to-gguf
"""


@click.command("help", short_help="Show the help of a command.", epilog=EXAMPLES)
@click.argument("name", required=False, metavar="COMMAND")
@click.pass_context
def command(context: click.Context, name: str | None) -> None:
    """Show the help of COMMAND, or the list of all commands."""
    from .commands import COMMANDS, cli
    from .slips import unknown_command

    root = context.find_root()
    if name is None:
        click.echo(root.get_help())
        return
    asked = cli.get_command(root, name)
    if asked is None:
        raise unknown_command(name, list(COMMANDS))
    with asked.context_class(asked, parent=root, info_name=name) as inner:
        click.echo(asked.get_help(inner))
