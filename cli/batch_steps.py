"""The jobs of ``jobs.toml`` in the words of the commands, checked by the commands' own options."""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core.errors import KconvError, UsageError
from ..core.input_files import quoted
from .batch_file import JobsFile, Table
from .options import is_in_store

if TYPE_CHECKING:
    from ..flows.batch_jobs import Format, Step

_COMMANDS: dict[Format, tuple[str, str]] = {"gguf": ("to-gguf", "to_gguf"), "onnx": ("to-onnx", "to_onnx")}
_OWN = ("source", "types", "formats", "output")
_CHOSEN = ("target_size", "target_kl", "policy")
"""What asks for files that have no type."""
_NOT_HERE = {
    "resume": "the same kconv batch goes on where it was killed",
    "type": "use types",
    "force": "pass --force to kconv batch",
    "scheduler": "pass --scheduler to kconv batch",
    "json": "pass --json to kconv batch",
    "verbose": "pass --verbose to kconv batch",
    "lang": "pass --lang to kconv batch",
    "help": "see `kconv batch --help`",
}
_EITHER = (("verify", "no-verify"), ("imatrix", "calibrate"))
"""Options of which a job has one: its own takes the place of the other in [defaults]."""


def steps_of(file: JobsFile, more: str = "") -> list[Step]:
    """The conversions the file asks for; ``more`` are options for all of them, as on a command line.

    Raises UsageError, which names the line.
    """
    content = file.content
    for name in content:
        if name not in ("jobs", "defaults"):
            raise _unknown(file, f"{file.name}: unknown table {quoted(name)}", name, ("jobs", "defaults"))
    jobs, defaults = content.get("jobs", []), content.get("defaults", {})
    if not isinstance(jobs, list) or not all(isinstance(job, dict) for job in jobs):
        raise UsageError(f"{file.name}: jobs is not a list of tables", hint="begin each job with [[jobs]]")
    if not isinstance(defaults, dict):
        raise UsageError(f"{file.name}: defaults is not a table", hint="begin it with [defaults]")
    if not jobs:
        raise UsageError(f"{file.name} has no jobs", hint="begin each job with [[jobs]]")
    words = _split(more)
    defaults = _checked(file, None, defaults)
    steps = []
    for number, job in enumerate(jobs, 1):
        own = _checked(file, number, job)
        if "source" not in {**defaults, **own}:
            raise UsageError(f"{file.where(number)} has no source", hint='source = "./my-model"')
        steps += _steps(file, number, own, defaults, words)
    from ..flows.batch_jobs import refuse_same_outputs

    refuse_same_outputs(steps)
    return steps


def _checked(file: JobsFile, job: int | None, table: Table) -> dict[str, Any]:
    """The table with its keys spelled with hyphens. Raises UsageError for one that is none."""
    known = sorted({*_OWN, *(name for format in _COMMANDS for name in _options(format))} - {*_NOT_HERE})
    checked: dict[str, Any] = {}
    for name, value in table.items():
        key = name.replace("_", "-")
        where = file.where(job, name)
        if key in _NOT_HERE:
            raise UsageError(f"{where}: {name} is no key of a job", hint=_NOT_HERE[key])
        if key not in known:
            raise _unknown(file, f"{where}: unknown key {quoted(name)}", key, known)
        if key in checked:
            raise UsageError(f"{where}: {key} is given twice", hint="leave one of them out")
        checked[key] = value
    return checked


def _unknown(file: JobsFile, message: str, name: str, known: Sequence[str]) -> UsageError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"did you mean {close[0]}? " if close else ""
    return UsageError(message, hint=f"{guess}keys are: {', '.join(known)}")


def _command(format: Format) -> click.Command:
    command: click.Command = import_module(f".{_COMMANDS[format][1]}", __package__).command
    return command


def _options(format: Format) -> dict[str, click.Option]:
    """The command's options by their long names."""
    found = {}
    for parameter in _command(format).params:
        if isinstance(parameter, click.Option):
            for name in parameter.opts:
                if name.startswith("--") and name not in ("--output", "--type"):
                    found[name[2:]] = parameter
    return found


def _steps(file: JobsFile, job: int, own: Table, defaults: Table, words: Sequence[str]) -> list[Step]:
    from ..flows.batch_jobs import Step

    kept = dict(defaults)
    for pair in _EITHER:
        if any(name in own for name in pair):
            kept = {name: value for name, value in kept.items() if name not in pair}
    asked = {**kept, **own}
    formats = _formats(file, job, asked.get("formats", ["gguf"]))
    _refuse_idle(file, job, own, formats)
    source = _source(file, job, asked["source"])
    named = _text(file, job, "output", asked.get("output", "."))
    output = Path(os.path.abspath(file.folder / os.path.expanduser(named)))
    if "onnx" in formats and output.suffix.lower() in (".gguf", ".onnx"):
        raise UsageError(
            f"{file.where(job, 'output')}: output = {quoted(named)} is the name of a file",
            hint="give a folder: ONNX models are folders in it",
        )
    steps = []
    for format in formats:
        options = _arguments(file, job, format, asked, words, source)
        wished = [name for name in _CHOSEN if options.get(name)] if format == "gguf" else []
        types: tuple[str, ...] = ()
        if not wished or "types" in asked:
            types = _types(file, job, asked.get("types", ["auto"]), format, formats)
        place = str(options.pop("checkpoint")).removeprefix("hf://")
        threads = options.pop("threads")
        together = format == "gguf" or options.get("calibrate")  # what is learned is learned once
        for group in [types] if together else [(name,) for name in types]:
            step = Step(job, place, format, group, output, options, threads)
            step = step.with_types((*group, *_wishes(file, step))) if wished else step
            _check(file, step)
            steps.append(step)
    return steps


def _wishes(file: JobsFile, step: Step) -> tuple[str, ...]:
    """The names of the files whose formats are chosen. Raises UsageError for what is no size or loss."""
    try:
        return step.wishes
    except UsageError as error:
        raise UsageError(f"{file.where(step.job)}: {error.message}", hint=error.hint) from error


def _check(file: JobsFile, step: Step) -> None:
    """Raise UsageError for what makes no sense whatever the checkpoint."""
    from ..converters.requests import check_request

    if step.format == "gguf":
        try:
            check_request(step.output, step.gguf_options())
        except UsageError as error:
            raise UsageError(f"{file.where(step.job)}: {error.message}", hint=error.hint) from error


def _refuse_idle(file: JobsFile, job: int, own: Table, formats: Sequence[Format]) -> None:
    """Raise UsageError for an option of a command that this job does not need."""
    for name in own:
        if name not in _OWN and not any(name in _options(format) for format in formats):
            command = next(_COMMANDS[format][0] for format in _COMMANDS if name in _options(format))
            raise UsageError(
                f"{file.where(job, name)}: {name} is an option of kconv {command}, but formats are "
                f"{', '.join(formats)}",
                hint="leave it out, or put it under [defaults]",
            )


def _formats(file: JobsFile, job: int, value: Any) -> list[Format]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names:
        raise UsageError(f"{file.where(job, 'formats')}: formats is not a list", hint='formats = ["gguf"]')
    for name in names:
        if name not in _COMMANDS:
            raise UsageError(
                f"{file.where(job, 'formats')}: unknown format {quoted(name)}", hint="formats are gguf, onnx"
            )
    return [format for format in _COMMANDS if format in names]


def _types(
    file: JobsFile, job: int, value: Any, format: Format, formats: Sequence[Format]
) -> tuple[str, ...]:
    """The types of one format: ``types`` counts for all, ``types.gguf`` for one."""
    from ..flows.batch_jobs import canonical

    where = file.where(job, "types")
    if isinstance(value, dict):
        for name in value:
            if name not in _COMMANDS:
                raise UsageError(f"{where}: unknown format {quoted(name)}", hint="types.gguf, types.onnx")
        value = value.get(format, ["auto"])
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"{where}: types is not a list of names", hint='types = ["q8_0", "q4_k_m"]')
    known: dict[str, str] = {}
    for name in (part.strip() for each in names for part in each.split(",")):
        try:
            known.setdefault(canonical(format, name), name)
        except KconvError as error:
            hint = error.hint
            if len(formats) > 1:
                hint = f"{hint}; or give each format its own: types.gguf = [...], types.onnx = [...]"
            raise UsageError(f"{where}: {error.message}", hint=hint) from error
    return tuple(known.values())


def _source(file: JobsFile, job: int, value: Any) -> str:
    """A folder with its whole path, taken from the jobs file's folder; a name on the Hub as it is."""
    from ..hub.names import is_repository

    text = _text(file, job, "source", value)
    path = os.path.abspath(file.folder / os.path.expanduser(text))
    if re.match(r"hf:|https?:", text, re.IGNORECASE):
        return text
    return f"hf://{text}" if is_repository(re.split("[@:]", text)[0]) and not os.path.lexists(path) else path


def _text(file: JobsFile, job: int | None, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"{file.where(job, key)}: {key} is {quoted(value)}, expected text in quotes")
    if is_in_store(value):
        raise UsageError(
            f"{file.where(job, key)}: {key} is in an object store, which a batch neither reads nor writes",
            hint="kconv to-gguf converts one model from or to an object store",
        )
    return value


def _split(more: str) -> list[str]:
    try:
        return shlex.split(more)
    except ValueError as error:
        raise UsageError(f"--options {more}: {error}") from error


def _arguments(
    file: JobsFile, job: int, format: Format, asked: Table, words: Sequence[str], source: str
) -> dict[str, Any]:
    """The options as arguments of the conversion, by the command's own parser."""
    name, options, given = _COMMANDS[format][0], _options(format), []
    displaced = {key for pair in _EITHER if any(_stands_in(words, key) for key in pair) for key in pair}
    for key, value in asked.items():
        if key in options and key not in displaced:
            given += _words(file, job, key, value, options[key])
    try:
        context = _command(format).make_context(name, [*given, *words, "--", source])
    except click.UsageError as error:
        raise UsageError(
            f"{_blamed(file, job, asked, error)}: {error.format_message()}", hint=f"see kconv {name} --help"
        ) from error
    except click.exceptions.Exit as error:  # --help and the like in --options
        raise UsageError(f"{' '.join(words)} converts nothing") from error
    values = dict(context.params)
    if values.pop("scope") is not None and values["no_verify"]:
        raise UsageError(
            f"{file.where(job)}: verify and no-verify cannot be combined", hint="leave one of them out"
        )
    scope = context.params["scope"]
    values["verify"] = "off" if values.pop("no_verify") else (scope or "quick").lower()
    for other in ("scheduler", "output", "resume", "types", "type_name", "force", "as_json", "verbose"):
        values.pop(other, None)
    return values


def _stands_in(words: Sequence[str], key: str) -> bool:
    return any(word.partition("=")[0] == f"--{key}" for word in words)


def _blamed(file: JobsFile, job: int, asked: Table, error: click.UsageError) -> str:
    """Where the value stands that an option's parser refused."""
    parameter = error.param if isinstance(error, click.BadParameter) else None
    names = [] if parameter is None else [name[2:] for name in parameter.opts if name.startswith("--")]
    return file.where(job, next((name for name in names if name in asked), None))


def _words(file: JobsFile, job: int, key: str, value: Any, option: click.Option) -> list[str]:
    """A key and its value as they would stand on the command line."""
    flag = f"--{key}"
    if option.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{file.where(job, key)}: {key} is {quoted(value)}, expected true or false")
        return [flag] if value else []
    values = value if isinstance(value, list) else [value]
    if len(values) > 1 and not option.multiple:
        raise UsageError(f"{file.where(job, key)}: {key} takes one value, not {len(values)}")
    words = []
    for each in values:
        if isinstance(each, bool) or not isinstance(each, str | int | float):
            raise UsageError(f"{file.where(job, key)}: {key} is {quoted(each)}, expected text or a number")
        words += [flag, _placed(file, option, str(each))]
    return words


def _placed(file: JobsFile, option: click.Option, text: str) -> str:
    """A path taken from the folder of the jobs file; a chat template may be a name, too."""
    path = os.path.abspath(file.folder / os.path.expanduser(text))
    if isinstance(option.type, click.Path) or (option.name == "chat_template" and os.path.isfile(path)):
        return path
    return text
