"""``kconv completion``: the script that lets a shell complete commands, options and files."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")

EXAMPLES = """\b
Examples:
  eval "$(kconv completion bash)"                                  # in ~/.bashrc
  eval "$(kconv completion zsh)"                                   # in ~/.zshrc
  kconv completion fish > ~/.config/fish/completions/kconv.fish
"""


@click.command("completion", short_help="Print the shell's completion script.", epilog=EXAMPLES)
@click.argument("shell", metavar="SHELL", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print the completion script for SHELL: bash, zsh or fish. The examples show where it belongs."""
    from click.shell_completion import get_completion_class

    from .commands import COMPLETION, cli

    script = get_completion_class(shell)
    assert script is not None  # click has all three
    click.echo(script(cli, {}, "kconv", COMPLETION).source())
