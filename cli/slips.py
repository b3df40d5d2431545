"""Words of other tools and of haste, answered with kconv's own: commands, options, values.

Nothing is guessed and done: the answer is an error (exit code 2) that names what was probably meant. The
order of arguments is in slip_order.py.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import click

from ..core.errors import UsageError
from .slip_order import arguments_of, in_order
from .slip_words import COMMANDS, INSTEAD, OPTIONS, OTHERWISE, SOURCES

_MUCH_CLOSER = 0.1  # by this much of a ratio the best of two similar names is better: only it is meant


def unknown_command(word: str, commands: Sequence[str], rest: Sequence[str] = ()) -> UsageError:
    """The answer to a command there is none of; ``rest`` are the words behind it."""
    told = f"unknown command {word!r}; commands are: {', '.join(commands)}"
    spelled = word.lower().replace("_", "-")
    if rest and f"{spelled}-{rest[0].lower()}" in commands:
        return UsageError(told, hint=f"use kconv {spelled}-{rest[0].lower()}")
    if spelled in OTHERWISE:
        return UsageError(told, hint=OTHERWISE[spelled])
    if (forgotten := _forgotten_command(word)) is not None:
        return UsageError(told, hint=forgotten)
    meant = [name for name in COMMANDS.get(spelled, ()) if name in commands] or _near(spelled, commands, 0.6)
    return UsageError(
        told,
        hint=f"use {_either([f'kconv {name}' for name in meant])}" if meant else "see `kconv --help`",
    )


def help_behind(command: str) -> UsageError:
    """The answer to ``kconv COMMAND help``."""
    return UsageError("help stands before the name of a command", hint=f"kconv help {command}")


def _forgotten_command(word: str) -> str | None:
    """``kconv MODEL``: the commands that take such a thing."""
    path = shlex.quote(word)
    if word.lower().endswith(".gguf"):
        return f"kconv run {path} opens a conversation, kconv inspect {path} shows what it contains"
    if not os.path.lexists(word):
        from ..hub.names import is_repository

        named, _, type_name = word.rpartition(":")
        if type_name and is_repository(named.removeprefix("hf://").removeprefix("hf.co/").partition("@")[0]):
            return f"kconv run {path} opens a conversation, kconv inspect {path} shows what it contains"
        hub = word.lower().startswith(("hf://", "https://")) or is_repository(word)
        return f"kconv to-gguf {path}" if hub else None
    if Path(word).is_dir():
        return f"kconv inspect {path} shows what it contains; kconv to-gguf {path} converts a checkpoint"
    return "see `kconv --help`"


def answered(error: BaseException, words: Sequence[str]) -> BaseException:
    """What to report in place of ``error``, where it is a known slip in the command line ``words``."""
    if not isinstance(error, click.UsageError):
        return error
    context = error.ctx or _context(words)
    if context is None:
        return error
    error.ctx = context  # click's parser leaves it out where a value is missing
    command = context.command
    for word in words:  # -ngl would be -n with the value gl
        if f"{command.name} {word}" in INSTEAD or (word in INSTEAD and not word.startswith("--")):
            return _no_option(error, word, INSTEAD.get(f"{command.name} {word}") or INSTEAD[word])
    if isinstance(error, click.NoSuchOption):
        return _unknown_option(error, command, words)
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        return _wrong_value(error)
    begin = words.index(command.name) + 1 if command.name in words else 1
    given = arguments_of(command, words[begin:])
    found = in_order(command.name or "", given)
    if found is not None:
        return found
    return _missing(error, command) if isinstance(error, click.MissingParameter) else error


def _context(words: Sequence[str]) -> click.Context | None:
    """That of the command which ``words`` begin with."""
    from .commands import COMMANDS as there
    from .commands import cli

    root = cli.context_class(cli, info_name="kconv")
    name = next((word for word in words if word in there), None)
    command = None if name is None else cli.get_command(root, name)
    return None if command is None else command.context_class(command, parent=root, info_name=name)


def _missing(error: click.MissingParameter, command: click.Command) -> BaseException:
    """With an example of how the command is called."""
    examples = [line.partition("  #")[0].strip() for line in (command.epilog or "").splitlines()]
    known = [line for line in examples if "kconv " in line]
    path = "kconv" if error.ctx is None else error.ctx.command_path
    hint = f"see `{path} --help`" + (f"; for example: {known[0]}" if known else "")
    choice = None if error.param is None else error.param.type
    if isinstance(choice, click.Choice) and error.param is not None:
        names = ", ".join(map(str, choice.choices))
        return UsageError(f"no {error.param.name} given, expected one of {names}", hint=hint)
    return UsageError(error.format_message(), hint=hint)


def _wrong_value(error: click.BadParameter) -> BaseException:
    asked = [] if error.param is None else error.param.opts
    if "--verify" in asked and any(
        f"'{word}'" in error.message for word in ("none", "off", "no", "false", "skip")
    ):
        return UsageError(error.format_message(), hint="to leave the proof out: --no-verify")
    if "--lang" in asked:
        return UsageError(error.format_message(), hint="use --lang en or --lang ko")
    return _number(error) or error


def _number(error: click.BadParameter) -> BaseException | None:
    """The answer to what is no number, or too large or small a one; None if it is something else."""
    kind = None if error.param is None else error.param.type
    match = re.fullmatch(r"'?(.*?)'? is not (?:a valid |in the range ).*", error.message, re.DOTALL)
    whole = isinstance(kind, click.types.IntParamType)
    if match is None or error.param is None or not (whole or isinstance(kind, click.types.FloatParamType)):
        return None
    name = max(error.param.opts, key=len)
    given = f"{name} {match[1]}"
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    path = "kconv" if error.ctx is None else error.ctx.command_path
    help_ = f"see `{path} --help`"
    if low is not None and high is not None:
        told = (
            f"{given}: expected a whole number from {low} to {high}"
            if whole
            else f"{given}: expected a number from {low} to {high}"
        )
    elif low is not None and getattr(kind, "min_open", False):
        told = f"{given}: expected a number above {low}"
    elif low is not None:
        told = (
            f"{given}: expected a whole number, {low} or more"
            if whole
            else f"{given}: expected a number, {low} or more"
        )
    else:
        told = f"{given}: expected a whole number" if whole else f"{given}: expected a number"
    return UsageError(told, hint=help_)


def _unknown_option(error: click.NoSuchOption, command: click.Command, words: Sequence[str]) -> BaseException:
    word = error.option_name.replace("_", "-")
    for key in (f"{command.name} {word}", word):
        if key in INSTEAD:
            return _no_option(error, error.option_name, INSTEAD[key])
    context = error.ctx
    there = [name for option in command.params for name in option.opts if name.startswith("--")]
    there += [] if context is None else command.get_help_option_names(context)
    path = "kconv" if context is None else context.command_path
    meant = [name for name in OPTIONS.get(word, ()) if name in there]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    if not meant and word in SOURCES and arguments:
        name = arguments[0].make_metavar(context) if context is not None else ""
        return _no_option(error, error.option_name, f"{name} is given without an option: {path} {name}")
    meant = meant or _near(word, there, 0.7)
    help_ = f"see `{path} --help`"
    return UsageError(
        f"{path} has no option {error.option_name}",
        hint=f"use {_either(meant)}; {help_}" if meant else help_,
    )


def _no_option(error: click.UsageError, option_name: str, hint: str) -> UsageError:
    path = "kconv" if error.ctx is None else error.ctx.command_path
    return UsageError(f"{path} has no option {option_name}", hint=hint)


def _near(word: str, names: Sequence[str], cutoff: float) -> list[str]:
    """The one or two of ``names`` that ``word`` is most like."""
    found = difflib.get_close_matches(word, names, n=2, cutoff=cutoff)
    ratios = [difflib.SequenceMatcher(None, name, word).ratio() for name in found]
    return found[:1] if len(found) > 1 and ratios[0] - ratios[1] > _MUCH_CLOSER else found


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
